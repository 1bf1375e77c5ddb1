"""Where to cut an image: random-resized crops for training, a centre crop for the probes."""

import numpy as np
import tensorflow as tf

from jepa_jax.data import stateless_random

_CROP = 4  # first part of the random keys; see masks.py
_TRIES = 10  # crops that don't fit are redrawn this often, then the centre is taken


def random_resized_crop(
    height: tf.Tensor,
    width: tf.Tensor,
    *,
    scale: tuple[float, float],
    aspect_ratio: tuple[float, float],
    seed: int,
    epoch: tf.Tensor,
    index: tf.Tensor,
    view: int = 0,
) -> tf.Tensor:
    """Boxes of random area and shape (Szegedy et al., 2015), one per image.

    Args:
      height, width: int32 [B], of the images in pixels.
      scale: share of the image's area, drawn uniformly.
      aspect_ratio: width / height, drawn uniformly in its logarithm.
      seed, epoch, index: what the draw depends on; epoch is a scalar or [B], index is [B].
      view: of several crops of one image, which.

    Returns:
      int32 [B, 4]: top, left, height, width in pixels.
    """
    of_view = (view,) if view else ()
    key = stateless_random.make_key(_CROP, seed, epoch, index, *of_view)  # [B]
    u = stateless_random.uniform(key, 4 * _TRIES)  # [B, 4 * tries]
    u = tf.reshape(u, [-1, 4, _TRIES])  # [B, 4, tries]
    height, width = tf.cast(height, tf.float64)[:, None], tf.cast(width, tf.float64)[:, None]

    area = height * width * (scale[0] + u[:, 0] * (scale[1] - scale[0]))  # [B, tries]
    low, high = np.log(aspect_ratio[0]), np.log(aspect_ratio[1])
    ratio = tf.exp(low + u[:, 1] * (high - low))
    crop_height = tf.round(tf.sqrt(area / ratio))
    crop_width = tf.round(tf.sqrt(area * ratio))
    fits = (crop_height >= 1) & (crop_width >= 1) & (crop_height <= height) & (crop_width <= width)
    top = tf.floor(u[:, 2] * (height - crop_height + 1))
    left = tf.floor(u[:, 3] * (width - crop_width + 1))
    tries = tf.stack([top, left, crop_height, crop_width], axis=-1)  # [B, tries, 4]

    first = tf.argmax(tf.cast(fits, tf.int32), axis=1)  # [B]
    boxes = tf.cast(tf.gather(tries, first, batch_dims=1), tf.int32)  # [B, 4]
    centre = center_crop(height[:, 0], width[:, 0], aspect_ratio=1.0, share=1.0)
    return tf.where(tf.reduce_any(fits, axis=1)[:, None], boxes, centre)


def center_crop(
    height: tf.Tensor, width: tf.Tensor, *, aspect_ratio: float, share: float
) -> tf.Tensor:
    """The largest centred boxes of an aspect ratio (width / height), with sides scaled by `share`.

    Args:
      height, width: [B], of the images in pixels.

    Returns:
      int32 [B, 4]: top, left, height, width in pixels.
    """
    height, width = tf.cast(height, tf.float64), tf.cast(width, tf.float64)
    crop_height = tf.maximum(tf.round(share * tf.minimum(height, width / aspect_ratio)), 1)
    crop_width = tf.maximum(tf.round(share * tf.minimum(width, height * aspect_ratio)), 1)
    top, left = tf.floor((height - crop_height) / 2), tf.floor((width - crop_width) / 2)
    return tf.cast(tf.stack([top, left, crop_height, crop_width], axis=-1), tf.int32)
