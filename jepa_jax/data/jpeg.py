"""Crops of JPEG files: decoded no further than needed and resized, several files at a time.

All of it runs without Python's lock, so that it gets faster with each core.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from jepa_jax.data.resize import Interpolation, resize


def read_crops(
    data: Sequence[bytes],
    boxes: np.ndarray,
    size: tuple[int, int],
    *,
    channels: int,
    interpolation: Interpolation,
    ratio: int = 1,
) -> np.ndarray:
    """Decodes boxes of images, and resizes them with an antialiasing filter.

    Args:
      boxes: int64 [n, 4], top, left, height, width, each within its image.
      size: height, width of the results.
      channels: 1 or 3.
      ratio: 1, 2, 4 or 8: decode at 1 / ratio of the image's size (DCT scaling). No sample of the
        result then needs more than that if each box is `ratio` times as large as `size`.

    Returns:
      uint8 [n, height, width, channels].

    Raises:
      tf.errors.OpError: an image is damaged.
    """
    scaled = boxes / ratio
    first = np.floor(scaled[:, :2])
    last = np.ceil(scaled[:, :2] + scaled[:, 2:])  # within the image: its size is rounded up too
    windows = np.concatenate([first, last - first], axis=1).astype(np.int32)
    crops = _program(len(data), channels, ratio)(tf.constant(list(data)), tf.constant(windows))
    out = np.empty((len(data), *size, channels), np.uint8)
    for i, (crop, (top, left), (height, width)) in enumerate(
        zip(crops, scaled[:, :2] - first, scaled[:, 2:], strict=True)
    ):
        pixels = np.asarray(memoryview(crop))  # without a copy
        out[i] = resize(pixels, size, interpolation, (left, top, width, height))
    return out


@functools.cache
def _program(n: int, channels: int, ratio: int) -> Callable[..., list[tf.Tensor]]:
    """Decodes n crops: (files [n], windows int32 [n, 4]) -> uint8 [h, w, C] of each.

    In one call, since starting one costs time too.
    """

    def several(data: tf.Tensor, windows: tf.Tensor) -> list[tf.Tensor]:
        return [
            tf.io.decode_and_crop_jpeg(file, window, channels=channels, ratio=ratio)
            for file, window in zip(tf.unstack(data, n), tf.unstack(windows, n), strict=True)
        ]

    return tf.function(
        several,
        input_signature=[tf.TensorSpec([n], tf.string), tf.TensorSpec([n, 4], tf.int32)],
        autograph=False,
    ).get_concrete_function()
