"""Features of many images with a frozen encoder."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jepa_jax.objectives.objective import Objective

Pool = Callable[[Any, Array], Array]


def make_pool(objective: Objective) -> Pool:
    """Jitted (target parameters, images [B, H, W, 3]) -> mean over each image's tokens [B, D]."""
    return jax.jit(lambda target, images: jnp.mean(objective.encode(target, images), axis=1))


def pooled_features(pool: Pool, target: Any, batches: Iterable[np.ndarray]) -> np.ndarray:
    """Average-pooled features of every image.

    Args:
      batches: images [B, H, W, 3]; the last may be shorter, and is padded for one compiled shape.

    Returns:
      float32 [n, D].
    """
    parts, size = [], None
    for images in batches:
        size = size or len(images)
        padded = np.pad(images, [(0, size - len(images)), (0, 0), (0, 0), (0, 0)])
        parts.append(pool(target, padded)[: len(images)])
    return np.concatenate(jax.device_get(parts))


def raw_pixels(batches: Iterable[np.ndarray]) -> np.ndarray:
    """The images themselves, flattened: the control that needs no network. float32 [n, H * W * 3].

    Grey images, three equal channels, count once.
    """
    pixels = np.concatenate(list(batches))
    mean_channel = pixels[..., :1]
    if np.array_equal(pixels, np.broadcast_to(mean_channel, pixels.shape)):
        pixels = mean_channel
    return pixels.reshape(len(pixels), -1)
