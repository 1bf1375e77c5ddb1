"""What the training and the evaluation pipeline share, and the latter itself."""

import os
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from jepa_jax.config import DataConfig
from jepa_jax.data.crops import center_crop
from jepa_jax.data.sources import Crop, Source
from jepa_jax.errors import StoppedRunError

# No stage has Python control flow on tensors, so none needs AutoGraph to rewrite its source.
graph = tf.autograph.experimental.do_not_convert
# As many calls at a time as there are cores for this process (Linux tells).
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
PARALLEL = {"num_parallel_calls": _CORES, "deterministic": True}


def fixed_options() -> tf.data.Options:
    """No tuning: the tuner sleeps, longer and longer, and an iterator that ends may wait for it.

    Seen with TensorFlow 2.21 once in ten times: up to half the iterator's life, 40 s after minutes.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return options


def normalize(image: tf.Tensor, data: DataConfig) -> tf.Tensor:
    """0..255 to zero mean and unit variance per channel."""
    mean, std = np.array(data.mean, np.float32), np.array(data.std, np.float32)
    return (image / np.float32(255) - mean) / std


def first_unreadable(data: DataConfig, source: Source, index: np.ndarray) -> str | None:
    """Name of the first of some examples that doesn't load by itself."""
    for i in index:
        try:
            source.load(tf.constant([i], tf.int64), _centre(data), data.image_size)
        except tf.errors.OpError:
            return source.describe(int(i))
    return None


def _centre(data: DataConfig) -> Crop:
    aspect_ratio = data.image_size[1] / data.image_size[0]

    def crop(height: tf.Tensor, width: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        del index
        return center_crop(height, width, aspect_ratio=aspect_ratio, share=data.eval_crop)

    return crop


def eval_batches(
    data: DataConfig, source: Source, *, index: np.ndarray, batch_size: int
) -> Iterator[np.ndarray]:
    """Centre-cropped, normalised images in the order of `index`.

    Yields:
      float32 [batch_size, H, W, 3]; the last one may be shorter.

    Raises:
      StoppedRunError: an image can't be decoded; the message names it.
    """
    per_call = batch_size if source.whole_batches else 1
    # All calls have one static shape: the last batch is filled up here, and cut below.
    num_batches = -(-len(index) // batch_size)
    filled = np.pad(index, (0, num_batches * batch_size - len(index)), mode="edge")
    dataset = tf.data.Dataset.from_tensor_slices(filled.astype(np.int64))
    dataset = dataset.batch(per_call, drop_remainder=True).map(
        graph(lambda i: normalize(source.load(i, _centre(data), data.image_size), data)),
        **PARALLEL,
    )
    if per_call < batch_size:
        dataset = dataset.rebatch(batch_size, drop_remainder=True)
    iterator = iter(dataset.prefetch(2).with_options(fixed_options()).as_numpy_iterator())
    for start in range(0, len(index), batch_size):
        try:
            images = next(iterator)
        except tf.errors.OpError as error:
            unreadable = first_unreadable(data, source, index[start : start + batch_size])
            raise StoppedRunError(
                f"an image can't be read: {unreadable or error.message}"
            ) from error
        yield images[: len(index) - start]
