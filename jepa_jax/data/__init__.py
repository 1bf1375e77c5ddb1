"""The input pipeline: images and masks, as a pure function of (seed, step).

The only package that imports TensorFlow, which is hidden from accelerators here: JAX owns those.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before the import: its start-up chatter

import tensorflow as tf

for _kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], _kind)
