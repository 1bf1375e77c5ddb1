"""The input pipeline: images and masks, as a pure function of (seed, step).

The only package that imports TensorFlow, which is hidden from accelerators here: JAX owns those.
"""

import os

# Before the import. oneDNN gains nothing here, makes results depend on the machine, and says so.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf

for _kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], _kind)
