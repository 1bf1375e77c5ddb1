"""RandAugment (Cubuk et al., 2020): a few random operations of one common strength.

Operations and strengths are those of MAE's fine-tuning (He et al., 2022): fifteen, all of which are
stronger at a higher magnitude, and each is carried out with probability 1/2. At magnitude m of 10:

    autocontrast, equalize, invert          no strength
    rotate                                  30 degrees * m / 10, either way
    posterize                               to 4 - floor(4 m / 10) bits
    solarize                                what is at or above 256 - floor(256 m / 10)
    solarize_add                            floor(110 m / 10) to what is below 128
    color, contrast, brightness, sharpness  a factor of 1 + or - 0.9 m / 10
    shear_x, shear_y                        0.3 m / 10 pixels per pixel, either way
    translate_x, translate_y                0.45 m / 10 of the side, either way

Pixels are as of Pillow, whose operations these are, and what comes in from outside is mid-gray.
"""

import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from jepa_jax.config import RandAugmentConfig
from jepa_jax.data import stateless_random
from jepa_jax.data.chosen import change

_RAND_AUGMENT = 11  # first part of the random keys; see masks.py, crops.py and augment.py
# An operation's random numbers: which, whether, two for the normal magnitude, and the sign.
_WHICH, _WHETHER, _RADIUS, _ANGLE, _SIGN = range(5)
_NUM_DRAWS = 5
_PROBABILITY, _MAX_MAGNITUDE = 0.5, 10.0
_GRAY, _MAX = 128.0, 255.0


def rand_augment(
    images: tf.Tensor,
    config: RandAugmentConfig,
    *,
    seed: int,
    epoch: int | tf.Tensor,
    index: tf.Tensor,
    view: int,
) -> tf.Tensor:
    """Carries out `num_ops` operations, drawn with replacement, on each image.

    Args:
      images: float32 [n, H, W, C] in 0..255, C 3 or 1, which are rounded to whole numbers first.
      seed, epoch, index, view: as `augment`.

    Returns:
      float32 [n, H, W, C], whole numbers of 0..255.
    """
    key = stateless_random.make_key(_RAND_AUGMENT, seed, epoch, index, view)  # [n]
    u = stateless_random.uniform(key, _NUM_DRAWS * config.num_ops)
    images = tf.round(images)
    for number in range(config.num_ops):
        of_op = u[:, _NUM_DRAWS * number : _NUM_DRAWS * (number + 1)]
        which = tf.cast(tf.floor(of_op[:, _WHICH] * len(OPERATIONS)), tf.int32)
        happens = of_op[:, _WHETHER] < _PROBABILITY
        radius = tf.sqrt(-2.0 * tf.math.log(1.0 - of_op[:, _RADIUS]))  # Box and Muller (1958)
        normal = radius * tf.cos(2.0 * math.pi * of_op[:, _ANGLE])
        magnitude = config.magnitude + config.magnitude_std * normal
        strength = tf.clip_by_value(magnitude, 0.0, _MAX_MAGNITUDE) / _MAX_MAGNITUDE
        sign = tf.where(of_op[:, _SIGN] < 0.5, -1.0, 1.0)
        for place, operation in enumerate(OPERATIONS.values()):
            chosen = happens & (which == place)
            images = change(
                images, chosen, operation, tf.cast(strength, tf.float32), tf.cast(sign, tf.float32)
            )
    return images


def _histograms(images: tf.Tensor) -> tf.Tensor:
    """int64 [n, C, 256]."""
    n, (height, width, channels) = tf.shape(images)[0], images.shape[1:]
    values = tf.transpose(tf.cast(images, tf.int32), [0, 3, 1, 2])
    values = tf.reshape(values, [n * channels, height * width])
    offset = 256 * tf.range(n * channels)[:, None]
    counts = tf.math.bincount(tf.reshape(values + offset, [-1]), minlength=256 * n * channels)
    return tf.cast(tf.reshape(counts, [n, channels, 256]), tf.int64)


def _look_up(images: tf.Tensor, tables: tf.Tensor) -> tf.Tensor:
    """Each pixel's entry in its image's and channel's table, [n, C, 256]."""
    values = tf.transpose(tf.cast(images, tf.int32), [0, 3, 1, 2])
    found = tf.gather(
        tables, tf.reshape(values, [*tf.unstack(tf.shape(values)[:2]), -1]), batch_dims=2
    )
    return tf.transpose(tf.reshape(tf.cast(found, tf.float32), tf.shape(values)), [0, 2, 3, 1])


def _autocontrast(images: tf.Tensor, strength: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    del strength, sign
    low, high = (
        tf.cast(reduce(images, axis=[1, 2]), tf.float64)[..., None]  # [n, C, 1]
        for reduce in (tf.reduce_min, tf.reduce_max)
    )
    value = tf.range(256, dtype=tf.float64)
    scale = 255.0 / tf.maximum(high - low, 1.0)
    stretched = tf.floor(tf.clip_by_value(value * scale - low * scale, 0.0, 255.0))
    return _look_up(images, tf.where(high > low, stretched, value))


def _equalize(images: tf.Tensor, strength: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    del strength, sign
    counts = _histograms(images)  # [n, C, 256]
    value = tf.range(256, dtype=tf.int64)
    last = tf.reduce_max(tf.where(counts > 0, value, 0), axis=-1, keepdims=True)
    total = tf.reduce_sum(counts, axis=-1, keepdims=True)
    step = (total - tf.gather(counts, last, batch_dims=2)) // 255
    before = tf.cumsum(counts, axis=-1, exclusive=True)
    flat = tf.minimum((before + step // 2) // tf.maximum(step, 1), 255)
    return _look_up(images, tf.where(step > 0, flat, value))


def _invert(images: tf.Tensor, strength: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    del strength, sign
    return _MAX - images


def _posterize(images: tf.Tensor, strength: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    del sign
    bits = 4.0 - tf.floor(4.0 * _wide(strength))
    step = 2.0 ** (8.0 - bits)
    return tf.floor(images / step) * step


def _solarize(images: tf.Tensor, strength: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    del sign
    threshold = 256.0 - tf.floor(256.0 * _wide(strength))
    return tf.where(images < threshold, images, _MAX - images)


def _solarize_add(images: tf.Tensor, strength: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    del sign
    more = tf.minimum(images + tf.floor(110.0 * _wide(strength)), _MAX)
    return tf.where(images < 128.0, more, images)


def _luma(images: tf.Tensor) -> tf.Tensor:
    """[n, H, W, C] -> [n, H, W, 1]: ITU-R BT.601 in the fixed-point numbers of Pillow."""
    if images.shape[-1] == 1:
        return images
    weights = tf.constant([19595, 38470, 7471], tf.int32)
    total = tf.reduce_sum(tf.cast(images, tf.int32) * weights, axis=-1, keepdims=True)
    return tf.cast(tf.bitwise.right_shift(total + 0x8000, 16), tf.float32)


def _enhanced(
    plain: Callable[[tf.Tensor], tf.Tensor],
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]:
    """From a plain form of the image at factor 0 through the image at 1 and beyond."""

    def enhance(images: tf.Tensor, strength: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
        factor = _wide(1.0 + 0.9 * strength * sign)
        other = plain(images)
        return tf.floor(tf.clip_by_value(other + factor * (images - other), 0.0, _MAX))

    return enhance


def _mean_gray(images: tf.Tensor) -> tf.Tensor:
    mean = tf.reduce_mean(tf.cast(_luma(images), tf.float64), axis=[1, 2, 3], keepdims=True)
    return tf.cast(tf.floor(mean + 0.5), tf.float32)


def _smooth(images: tf.Tensor) -> tf.Tensor:
    """Weighted means over 3 x 3 pixels; the border stays."""
    channels = images.shape[-1]
    weights = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32)
    kernel = np.tile(weights[:, :, None, None], (1, 1, channels, 1))
    inner = tf.nn.depthwise_conv2d(images, kernel, strides=[1, 1, 1, 1], padding="VALID")
    inner = tf.floor(inner / 13.0 + 0.5)
    height, width = images.shape[1:3]
    rows, columns = np.arange(height)[:, None, None], np.arange(width)[None, :, None]
    inside = (rows > 0) & (rows < height - 1) & (columns > 0) & (columns < width - 1)
    padded = tf.pad(inner, [[0, 0], [1, 1], [1, 1], [0, 0]])
    return tf.where(inside[None], padded, images)


def _moved(
    matrix: Callable[..., tuple[tf.Tensor | float, ...]],
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]:
    """An affine map, bilinear.

    Args:
      matrix: (signed strength [n], height, width) -> a .. f, by which the pixel at (x, y), whose
        centre is at (x + 1/2, y + 1/2), is taken from (a x + b y + c, d x + e y + f).
    """

    def move(images: tf.Tensor, strength: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
        height, width = images.shape[1:3]
        amount = strength * sign
        a, b, c, d, e, f = (
            tf.broadcast_to(tf.cast(x, tf.float32), tf.shape(amount))
            for x in matrix(amount, height, width)
        )
        zero = tf.zeros_like(a)
        # TensorFlow counts from the first pixel's centre.
        c, f = c + 0.5 * (a + b) - 0.5, f + 0.5 * (d + e) - 0.5
        x = tf.raw_ops.ImageProjectiveTransformV3(
            images=images,
            transforms=tf.stack([a, b, c, d, e, f, zero, zero], axis=-1),
            output_shape=tf.constant([height, width]),
            fill_value=_GRAY,
            interpolation="BILINEAR",
            fill_mode="CONSTANT",
        )
        return tf.ensure_shape(tf.round(x), images.shape)

    return move


def _rotation(amount: tf.Tensor, height: int, width: int) -> tuple[tf.Tensor | float, ...]:
    """About the centre, counter-clockwise."""
    angle = amount * (30.0 * math.pi / 180.0)
    cos, sin = tf.cos(angle), tf.sin(angle)
    x, y = width / 2, height / 2
    return cos, -sin, x - x * cos + y * sin, sin, cos, y - x * sin - y * cos


def _wide(values: tf.Tensor) -> tf.Tensor:
    """[n] -> [n, 1, 1, 1]."""
    return values[:, None, None, None]


# (images, strength [n] in 0..1, sign [n]) -> images
OPERATIONS: dict[str, Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "invert": _invert,
    "rotate": _moved(_rotation),
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": _enhanced(_luma),
    "contrast": _enhanced(_mean_gray),
    "brightness": _enhanced(tf.zeros_like),
    "sharpness": _enhanced(_smooth),
    "shear_x": _moved(lambda amount, *_: (1.0, 0.3 * amount, 0.0, 0.0, 1.0, 0.0)),
    "shear_y": _moved(lambda amount, *_: (1.0, 0.0, 0.0, 0.3 * amount, 1.0, 0.0)),
    "translate_x": _moved(
        lambda amount, _, width: (1.0, 0.0, 0.45 * amount * width, 0.0, 1.0, 0.0)
    ),
    "translate_y": _moved(
        lambda amount, height, _: (1.0, 0.0, 0.0, 0.0, 1.0, 0.45 * amount * height)
    ),
}
