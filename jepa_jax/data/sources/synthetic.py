"""Images that are made when they are needed: stripes, whose direction is their class.

For smoke runs where there are no data, and to measure a machine: they cost far less than decoding.
"""

from typing import Literal

import numpy as np
import tensorflow as tf

from jepa_jax.config import DataConfig
from jepa_jax.data import stateless_random
from jepa_jax.data.crops import Crop, whole_image
from jepa_jax.data.sources.source import Source, names_digest
from jepa_jax.errors import UserError

CLASSES = 10  # directions, 18 degrees apart
_IMAGES = 10_000  # of training, if `path` does not say; of test a fifth
_STRIPES = 7  # first part of the random keys; see masks.py
_PER_CALL = 8


def open_synthetic(data: DataConfig, split: Literal["train", "test"]) -> Source:
    """As many training images as `path` says, for example "100000", and a fifth of that for tests.

    Image i is of class i % 10. Colours, width and place of its stripes follow from (split, i), and
    it is the same at any size that it is cut out at.

    Raises:
      UserError: `path` is no number, or there is no such split.
    """
    name = data.train_split if split == "train" else data.test_split
    if name not in ("train", "test"):
        raise UserError(f"config.data.{split}_split = {name!r}: must be train or test")
    number = str(_IMAGES) if data.path is None else str(data.path)
    if not (number.isascii() and number.isdigit()) or not CLASSES <= int(number) <= 10**9:
        raise UserError(
            f"config.data.path = {data.path!r}: must be the number of synthetic images, "
            f"{CLASSES} to 1,000,000,000, or None for {_IMAGES:,}"
        )
    count = int(number) if name == "train" else max(int(number) // 5, CLASSES)
    channels = data.channels or 3
    part = ("train", "test").index(name)
    full_size = data.image_size

    def load(index: tf.Tensor, crop: Crop, size: tuple[int, int]) -> tuple[tf.Tensor, tf.Tensor]:
        key = stateless_random.make_key(_STRIPES, part, index)
        u = stateless_random.uniform(key, 2 + 2 * channels)

        def call(numbers: np.ndarray, u: np.ndarray, draws: np.ndarray) -> np.ndarray:
            n = len(numbers)
            boxes = crop.boxes(draws, np.full(n, full_size[0]), np.full(n, full_size[1]))
            return _stripes(numbers % CLASSES, u, boxes, full_size, size)

        x = tf.numpy_function(call, [index, u, crop.draws(index)], tf.uint8, stateful=False)
        return tf.ensure_shape(x, [index.shape[0], *size, channels]), index

    def read(i: int) -> bytes:
        image = load(tf.constant([i], tf.int64), whole_image(), full_size)[0][0]
        return tf.io.encode_png(image).numpy()

    return Source(
        num_examples=count,
        load=load,
        problem=lambda _: None,
        channels=channels,
        dtype=np.dtype(np.uint8),
        labels=np.arange(count, dtype=np.int64) % CLASSES,
        class_names=tuple(f"{180 * i // CLASSES} degrees" for i in range(CLASSES)),
        images_per_call=_PER_CALL,
        describe=lambda i: f"synthetic {name} image {i}",
        digest=names_digest([f"stripes {name} {count} {full_size} {channels}".encode()]),
        read=read if channels <= 4 else None,
    )


def _stripes(
    labels: np.ndarray,
    u: np.ndarray,
    boxes: np.ndarray,
    full_size: tuple[int, int],
    size: tuple[int, int],
) -> np.ndarray:
    """Waves between two colours, as uint8 [n, *size, C].

    Args:
      u: [n, 2 + 2 C], in 0..1: the waves' number and place, and the two colours.
      boxes: [n, 4], of images of `full_size`: top, left, height, width.
    """
    angle = np.pi * labels / CLASSES
    waves = 2 * np.pi * (3 + 3 * u[:, 0]) / max(full_size)
    boxes = boxes.astype(np.float64)
    # The wave at (y, x) is sin(a + b), a of its row and b of its column: few sines, many products.
    y = boxes[:, :1] + (np.arange(size[0]) + 0.5) / size[0] * boxes[:, 2:3]
    x = boxes[:, 1:2] + (np.arange(size[1]) + 0.5) / size[1] * boxes[:, 3:]
    a = (waves * np.cos(angle))[:, None] * y + 2 * np.pi * u[:, 1:2]
    b = (waves * np.sin(angle))[:, None] * x
    rows = np.stack([np.sin(a), np.cos(a)], axis=-1).astype(np.float32)  # [n, H, 2]
    columns = np.stack([np.cos(b), np.sin(b)], axis=1).astype(np.float32)  # [n, 2, W]
    levels = (127.5 + 127.5 * rows @ columns).astype(np.uint8)  # [n, H, W]
    first, second = np.split(255 * u[:, None, 2:], 2, axis=-1)  # [n, 1, C]
    palettes = first + np.linspace(0, 1, 256)[:, None] * (second - first)  # [n, 256, C]
    pairs = zip(palettes.astype(np.uint8), levels, strict=True)
    return np.stack([np.take(palette, level, axis=0) for palette, level in pairs])
