"""Where to cut an image: random-resized crops for training, a centre crop for the probes."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from jepa_jax.batch.spec import View
from jepa_jax.data import stateless_random

_CROP = 4  # first part of the random keys; see masks.py
_TRIES = 10  # crops that don't fit are redrawn this often, then the centre is taken


class Crop(NamedTuple):
    """Boxes in two steps: an image's size is known only when its file has been opened.

    Attributes:
      draws: example numbers int64 [n] -> random numbers float64 [n, K], in the graph.
      boxes: (those [n, K], heights [n], widths [n]) -> int64 [n, 4]: top, left, height, width.
    """

    draws: Callable[[tf.Tensor], tf.Tensor]
    boxes: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def random_resized_crop(
    *,
    scale: tuple[float, float],
    aspect_ratio: tuple[float, float],
    seed: int,
    epoch: int | tf.Tensor,
    view: int = 0,
) -> Crop:
    """Boxes of random area and shape (Szegedy et al., 2015), with torchvision's distribution.

    Where ten tries do not fit, it is the largest centred box whose shape is within the bounds.

    Args:
      scale: share of the image's area, drawn uniformly.
      aspect_ratio: width / height, drawn uniformly in its logarithm.
      seed, epoch: what the draw depends on, besides the example's number; epoch is a scalar or [n].
      view: of several crops of one image, which.
    """

    def draws(index: tf.Tensor) -> tf.Tensor:
        of_view = (view,) if view else ()
        key = stateless_random.make_key(_CROP, seed, epoch, index, *of_view)  # [n]
        return stateless_random.uniform(key, 4 * _TRIES)  # [n, 4 * tries]

    def boxes(u: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
        u = u.reshape(-1, 4, _TRIES)
        height, width = heights[:, None].astype(np.float64), widths[:, None].astype(np.float64)
        area = height * width * (scale[0] + u[:, 0] * (scale[1] - scale[0]))  # [n, tries]
        low, high = np.log(aspect_ratio)
        ratio = np.exp(low + u[:, 1] * (high - low))
        crop_height, crop_width = np.round(np.sqrt(area / ratio)), np.round(np.sqrt(area * ratio))
        fits = (np.minimum(crop_height, crop_width) >= 1) & (crop_height <= height)
        fits &= crop_width <= width
        top = np.floor(u[:, 2] * (height - crop_height + 1))
        left = np.floor(u[:, 3] * (width - crop_width + 1))
        tries = np.stack([top, left, crop_height, crop_width], axis=-1)  # [n, tries, 4]

        first = tries[np.arange(len(u)), fits.argmax(axis=1)].astype(np.int64)  # [n, 4]
        within = np.clip(widths / heights, *aspect_ratio)
        centre = centre_boxes(heights, widths, aspect_ratio=within, share=1.0)
        return np.where(fits.any(axis=1)[:, None], first, centre)

    return Crop(draws, boxes)


def view_crops(
    views: tuple[View, ...], *, seed: int, epoch: int | tf.Tensor
) -> Iterator[tuple[View, int, Crop]]:
    """All crops of an example: each with its view, and its number among that view's V."""
    number = 0
    for view in views:
        for of_view in range(view.number or 1):
            crop = random_resized_crop(
                scale=view.crop_scale,
                aspect_ratio=view.crop_aspect_ratio,
                seed=seed,
                epoch=epoch,
                view=number,
            )
            yield view, of_view, crop
            number += 1


def whole_image() -> Crop:
    """All of each image."""

    def boxes(u: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
        del u
        zero = np.zeros_like(heights)
        return np.stack([zero, zero, heights, widths], axis=-1).astype(np.int64)

    return Crop(_no_draws, boxes)


def center_crop(*, aspect_ratio: float, share: float) -> Crop:
    """The largest centred box of an aspect ratio (width / height), with sides scaled by `share`."""

    def boxes(u: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
        del u
        return centre_boxes(heights, widths, aspect_ratio=aspect_ratio, share=share)

    return Crop(_no_draws, boxes)


def _no_draws(index: tf.Tensor) -> tf.Tensor:
    return tf.zeros([tf.size(index), 0], tf.float64)


def centre_boxes(
    heights: np.ndarray, widths: np.ndarray, *, aspect_ratio: float | np.ndarray, share: float
) -> np.ndarray:
    """The boxes of `center_crop`, int64 [n, 4], of images of these sizes [n]."""
    height, width = heights.astype(np.float64), widths.astype(np.float64)
    crop_height = np.maximum(np.round(share * np.minimum(height, width / aspect_ratio)), 1)
    crop_width = np.maximum(np.round(share * np.minimum(width, height * aspect_ratio)), 1)
    top, left = np.floor((height - crop_height) / 2), np.floor((width - crop_width) / 2)
    return np.stack([top, left, crop_height, crop_width], axis=-1).astype(np.int64)
