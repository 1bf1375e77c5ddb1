"""Random erasing (Zhong et al., 2020): a box of noise in the place of a part of the image."""

import statistics

import numpy as np
import tensorflow as tf

from jepa_jax.data import stateless_random
from jepa_jax.data.chosen import change

_ERASE, _NOISE = 12, 13  # first parts of the random keys; see masks.py, crops.py and augment.py
_AREA, _ASPECT, _TRIES = (0.02, 1 / 3), (0.3, 1 / 0.3), 10
_BYTES = 6  # of a random number of 53 bits
# Each of 256 equally likely bytes stands for a value of a normal distribution.
_QUANTILES = [statistics.NormalDist(0.5, 0.25).inv_cdf((i + 0.5) / 256) for i in range(256)]
_PIXELS = np.clip(255 * np.array(_QUANTILES), 0, 255).astype(np.float32)


def erase(
    images: tf.Tensor,
    probability: float,
    *,
    seed: int,
    epoch: int | tf.Tensor,
    index: tf.Tensor,
    view: int,
) -> tf.Tensor:
    """Fills a box of each image with noise, with some probability.

    The box is 0.02 to 1/3 of the area, uniformly; its height / width is 0.3 to 3.33, uniformly in
    the logarithm; of ten draws the first that fits is taken, and none is erased if none does. The
    published noise is standard normal, in normalised pixels; images travel as integers and are
    normalised on the device, so that here it has mean 1/2 and standard deviation 1/4 of white in
    all channels, as pixels of photos have (ImageNet: 0.41 to 0.49, and 0.23), and is cut off at
    black and white.

    Args:
      images: float32 [n, H, W, C] in 0..255.
      seed, epoch, index, view: as `augment`.
    """
    key = stateless_random.make_key(_ERASE, seed, epoch, index, view)  # [n]
    u = stateless_random.uniform(key, 1 + 4 * _TRIES)
    chosen, u = u[:, 0] < probability, tf.reshape(u[:, 1:], [-1, 4, _TRIES])
    noise_key = stateless_random.make_key(_NOISE, seed, epoch, index, view)
    return change(images, chosen, _erased, u, noise_key)


def _erased(images: tf.Tensor, u: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """Args: u: float64 [m, 4, tries], of area, aspect, top and left; key: uint64 [m]."""
    height, width, channels = images.shape[1:]
    area = height * width * (_AREA[0] + u[:, 0] * (_AREA[1] - _AREA[0]))
    low, high = np.log(_ASPECT)
    aspect = tf.exp(low + u[:, 1] * (high - low))
    h, w = tf.round(tf.sqrt(area * aspect)), tf.round(tf.sqrt(area / aspect))  # [m, tries]
    fits = (h < height) & (w < width)
    first = tf.argmax(tf.cast(fits, tf.int32), axis=1)  # of several equal ones the first
    h, w, top, left = (tf.gather(x, first, batch_dims=1) for x in (h, w, u[:, 2], u[:, 3]))
    top, left = tf.floor(top * (height - h + 1)), tf.floor(left * (width - w + 1))  # [m]

    def inside(pixels: int, start: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
        place = tf.range(pixels, dtype=tf.float64)
        return (place >= start[:, None]) & (place < (start + length)[:, None])  # [m, pixels]

    rows, columns = inside(height, top, h), inside(width, left, w)
    box = rows[:, :, None] & columns[:, None, :] & tf.reduce_any(fits, axis=1)[:, None, None]
    return tf.where(box[..., None], _noise(key, (height, width, channels)), images)


def _noise(key: tf.Tensor, shape: tuple[int, int, int]) -> tf.Tensor:
    """float32 [m, H, W, C], from as few hashes as possible: six pixels of each."""
    count = int(np.prod(shape))
    u = stateless_random.uniform(key, -(-count // _BYTES))
    whole = tf.cast(u * 2.0 ** (8 * _BYTES), tf.int64)
    numbers = tf.cast(tf.bitcast(whole, tf.uint8)[..., :_BYTES], tf.int32)  # little-endian
    numbers = tf.reshape(numbers, [tf.shape(key)[0], -1])[:, :count]
    return tf.reshape(tf.gather(tf.constant(_PIXELS), numbers), [-1, *shape])
