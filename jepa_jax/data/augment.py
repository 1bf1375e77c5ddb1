"""Augmentations of views: flip, RandAugment, colour jitter, grayscale, blur, solarize, erasing.

Images are float32 in 0..255, with three channels or one. One channel is a gray image: it has no
colour to change, so saturation, hue and grayscale leave it alone.

Each change is computed for the examples that drew it alone: they are gathered, changed and put
back. So a step costs what it does on average, not the sum of all that could have been done, and an
example's result has nothing to do with its batch.
"""

import itertools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from jepa_jax.config import AugmentationConfig
from jepa_jax.data import stateless_random
from jepa_jax.data.chosen import change
from jepa_jax.data.erasing import erase
from jepa_jax.data.rand_augment import rand_augment

_AUGMENT = 5  # first part of the random keys; see masks.py and crops.py
# Which of an example's random numbers is for what. The places are fixed, so that switching one
# change on or off doesn't redraw the others. The jitter's four factors come last.
_FLIP, _JITTER, _ORDER, _GRAYSCALE, _BLUR, _SIGMA, _SOLARIZE, _FACTORS = range(8)
_NUM_DRAWS = _FACTORS + 4

_ORDERS = np.array(list(itertools.permutations(range(4))), np.int32)  # [24, 4]
_GRAY = (0.2989, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
_MAX = 255.0


def augment(
    images: tf.Tensor,
    augmentation: AugmentationConfig,
    *,
    seed: int,
    epoch: int | tf.Tensor,
    index: tf.Tensor,
    view: int,
) -> tf.Tensor:
    """Changes each image at random: flip, RandAugment, jitter, grayscale, blur, solarize, erasing.

    A change whose probability is 0 is not part of the graph.

    Args:
      images: float32 [n, H, W, C] in 0..255; H, W and C are static, and C is 3 or 1.
      augmentation: the probabilities and strengths.
      seed, epoch, index, view: what the draws depend on; epoch is a scalar or [n], index is [n],
        and view counts the views of one example.

    Returns:
      float32 [n, H, W, C] in 0..255.
    """
    key = stateless_random.make_key(_AUGMENT, seed, epoch, index, view)  # [n]
    u = stateless_random.uniform(key, _NUM_DRAWS)  # [n, draws]
    a, colour = augmentation, images.shape[-1] == 3

    if a.flip:
        images = change(images, u[:, _FLIP] < a.flip, lambda x: tf.reverse(x, axis=[2]))
    if a.rand_augment is not None:
        images = rand_augment(
            images, a.rand_augment, seed=seed, epoch=epoch, index=index, view=view
        )
    if a.jitter:
        images = change(images, u[:, _JITTER] < a.jitter, lambda x, u: _jitter(x, a, u), u)
    if a.grayscale and colour:
        images = change(
            images, u[:, _GRAYSCALE] < a.grayscale, lambda x: tf.repeat(_gray(x), 3, axis=-1)
        )
    if a.blur:
        low, high = a.blur_sigma
        sigma = low + u[:, _SIGMA] * (high - low)  # [n]
        images = change(images, u[:, _BLUR] < a.blur, _blur, sigma)
    if a.solarize:
        threshold = a.solarize_threshold * _MAX
        images = change(
            images, u[:, _SOLARIZE] < a.solarize, lambda x: tf.where(x < threshold, x, _MAX - x)
        )
    if a.erase:
        images = erase(images, a.erase, seed=seed, epoch=epoch, index=index, view=view)
    return images


def _jitter(images: tf.Tensor, a: AugmentationConfig, u: tf.Tensor) -> tf.Tensor:
    """Brightness, contrast, saturation and hue, in an order drawn per example."""
    operations: tuple[tuple[Callable[..., tf.Tensor], float, float], ...] = (
        # function, and the range of its parameter
        (_brightness, max(1 - a.brightness, 0.0), 1 + a.brightness),
        (_contrast, max(1 - a.contrast, 0.0), 1 + a.contrast),
        (_saturation, max(1 - a.saturation, 0.0), 1 + a.saturation),
        (_hue, -a.hue, a.hue),
    )
    if images.shape[-1] == 1:
        operations = operations[:2]
    which = tf.cast(tf.floor(u[:, _ORDER] * len(_ORDERS)), tf.int32)
    order = tf.gather(_ORDERS, which)  # [n, 4]
    # Any operation can be in any slot, hence 16 pieces of graph; but each example passes through
    # four of them only.
    for slot in range(4):
        for number, (operation, low, high) in enumerate(operations):
            if low == high:  # of strength 0
                continue
            parameter = low + u[:, _FACTORS + number] * (high - low)  # [n]
            parameter = tf.cast(parameter, tf.float32)[:, None, None, None]
            images = change(images, order[:, slot] == number, operation, parameter)
    return images


def _brightness(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    return _blend(images, tf.zeros_like(factor), factor)


def _contrast(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    # In float64, whose sum rounds to the same float32 in whatever order the pixels are added.
    gray = tf.cast(_gray(images), tf.float64)
    mean = tf.cast(tf.reduce_mean(gray, axis=[1, 2, 3], keepdims=True), tf.float32)
    return _blend(images, mean, factor)


def _saturation(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    return _blend(images, _gray(images), factor)


def _blend(images: tf.Tensor, other: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """From `other` at factor 0 through the image at 1 and beyond, within the range of pixels."""
    return tf.clip_by_value(factor * images + (1 - factor) * other, 0.0, _MAX)


def _hue(images: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    # Of the three only the value has the pixels' scale, so 0..255 needs no change to 0..1.
    hue, saturation, value = tf.split(tf.image.rgb_to_hsv(images), 3, axis=-1)
    hue = tf.math.floormod(hue + shift, 1.0)
    images = tf.image.hsv_to_rgb(tf.concat([hue, saturation, value], axis=-1))
    return tf.clip_by_value(images, 0.0, _MAX)


def _gray(images: tf.Tensor) -> tf.Tensor:
    """[n, H, W, C] -> [n, H, W, 1]."""
    if images.shape[-1] == 1:
        return images
    red, green, blue = tf.split(images, 3, axis=-1)
    return _GRAY[0] * red + _GRAY[1] * green + _GRAY[2] * blue


def _blur(images: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
    """Gaussian blur with each image's own sigma [n], in pixels.

    The kernel is a tenth of the shorter side wide, odd and at least 3, as in SimCLR (23 for 224),
    and the image is mirrored at its edges.
    """
    height, width, channels = images.shape[1:]
    side = min(height, width)
    radius = min(max(side // 20, 1), side - 1)  # a mirror needs that many pixels inside
    distance = tf.constant(np.arange(-radius, radius + 1), tf.float64)  # [K]
    kernel = tf.exp(-0.5 * (distance[:, None] / sigma) ** 2)  # [K, n]
    kernel = tf.cast(kernel / tf.reduce_sum(kernel, axis=0), tf.float32)

    # A depthwise convolution has a kernel per channel: the examples become channels of one image.
    # On a CPU ten times as fast as weighted sums of shifted images.
    kernel = tf.repeat(kernel, channels, axis=1)  # [K, n * C]
    x = tf.reshape(tf.transpose(images, [1, 2, 0, 3]), [1, height, width, -1])
    x = tf.pad(x, [[0, 0], [radius, radius], [radius, radius], [0, 0]], "REFLECT")
    for shape in (kernel[:, None, :, None], kernel[None, :, :, None]):  # down, then across
        x = tf.nn.depthwise_conv2d(x, shape, strides=[1, 1, 1, 1], padding="VALID")
    x = tf.transpose(tf.reshape(x, [height, width, -1, channels]), [2, 0, 1, 3])
    return tf.minimum(x, _MAX)  # the weights' rounded sum can be a little over 1
