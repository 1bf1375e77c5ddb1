"""The input pipeline: images and masks, as a pure function of (seed, step).

The only package that imports TensorFlow, which is hidden from accelerators here: JAX owns those.
"""

import os

# Before the import. oneDNN gains nothing here, makes results depend on the machine, and says so.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import contextlib

import tensorflow as tf

# Images are worked on side by side; to share out each small operation costs more than it gains.
with contextlib.suppress(RuntimeError):  # TensorFlow is in use already
    tf.config.threading.set_intra_op_parallelism_threads(1)
for _kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], _kind)
