"""Crops of JPEG files: decoded no further than needed and resized, several files at a time.

All of it runs in TensorFlow's threads without Python's lock, so that it gets faster with each core.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import tensorflow as tf

Interpolation = Literal["bilinear", "bicubic"]
_KERNELS = {"bilinear": "triangle", "bicubic": "keyscubic"}


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
    factors = np.asarray(size) / scaled[:, 2:]
    shifts = (first - scaled[:, :2]) * factors
    # Each side is resized by itself: the other one then has a scale of 1 and a shift of 0.
    placed = [factors, np.ones_like(factors), shifts, np.zeros_like(shifts)]
    places = np.stack(placed, axis=-1).astype(np.float32)  # [n, 2 sides, 4]
    program = _program(len(data), size, channels, interpolation, ratio)
    out = program(tf.constant(list(data)), tf.constant(windows), tf.constant(places))
    return np.asarray(memoryview(out))  # without a copy


@functools.cache
def _program(
    n: int, size: tuple[int, int], channels: int, interpolation: Interpolation, ratio: int
) -> Callable[..., tf.Tensor]:
    """Decodes and resizes n crops, with few operations an image: starting one costs time too.

    A side at a time is resized, with the other side and the channels as one: TensorFlow's kernel is
    nearly twice as fast on long rows of contiguous numbers as on an image.
    """

    def several(data: tf.Tensor, windows: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
        one, heights, widths = tf.ones([n], tf.int32), windows[:, 2], windows[:, 3]
        by_rows = tf.unstack(tf.stack([one, heights, one, channels * widths], axis=1))
        image = tf.unstack(tf.stack([size[0] * one, widths, channels * one], axis=1))
        by_columns = tf.unstack(tf.stack([one, widths, one, size[0] * channels * one], axis=1))
        place = tf.unstack(tf.reshape(places, [4 * n, 2]))  # scale, translation; rows, columns
        crops = []
        for i, (file, window) in enumerate(zip(tf.unstack(data), tf.unstack(windows), strict=True)):
            x = tf.io.decode_and_crop_jpeg(file, window, channels=channels, ratio=ratio)
            x = resize_rows(tf.reshape(x, by_rows[i]), size[0], *place[4 * i : 4 * i + 2])
            x = tf.transpose(tf.reshape(x, image[i]), [1, 0, 2])
            x = resize_rows(tf.reshape(x, by_columns[i]), size[1], *place[4 * i + 2 : 4 * i + 4])
            x = tf.reshape(x, [size[1], size[0], channels]) + 0.5
            if interpolation == "bicubic":  # it overshoots; bilinear weights are a mean
                x = tf.clip_by_value(x, 0.0, 255.0)
            crops.append(tf.transpose(tf.cast(x, tf.uint8), [1, 0, 2]))
        return tf.stack(crops)

    def resize_rows(x: tf.Tensor, number: int, scale: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
        """Rows [1, h, 1, M] as float32 [1, number, 1, M]."""
        return tf.raw_ops.ScaleAndTranslate(
            images=x,
            size=[number, 1],
            scale=scale,
            translation=shift,
            kernel_type=_KERNELS[interpolation],
            antialias=True,
        )

    return tf.function(
        several,
        input_signature=[
            tf.TensorSpec([n], tf.string),
            tf.TensorSpec([n, 4], tf.int32),
            tf.TensorSpec([n, 2, 4], tf.float32),
        ],
        autograph=False,
    ).get_concrete_function()
