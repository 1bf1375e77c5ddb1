"""Features of many images with a frozen encoder."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def pooled_features(
    encode: Callable[[Any, Array], Array], params: Any, batches: Iterable[np.ndarray]
) -> np.ndarray:
    """The mean over an image's tokens, for every image.

    Args:
      encode: (params, images [B, H, W, 3]) -> tokens [B, N, D].
      batches: images [B, H, W, 3]; the last may be shorter, and is padded for one compiled shape.

    Returns:
      float32 [n, D].
    """

    @jax.jit
    def pool(params: Any, images: Array) -> Array:
        return jnp.mean(encode(params, images), axis=1)  # [B, D]

    parts, size = [], None
    for images in batches:
        size = size or len(images)
        padded = np.pad(images, [(0, size - len(images))] + [(0, 0)] * 3)
        parts.append(pool(params, padded)[: len(images)])
    return np.concatenate(jax.device_get(parts))


def raw_pixels(batches: Iterable[np.ndarray]) -> np.ndarray:
    """The images themselves, flattened: the control that needs no network. float32 [n, H * W * 3].

    Grey images, three equal channels, count once.
    """
    pixels = np.concatenate(list(batches))
    if (pixels == pixels[..., :1]).all():
        pixels = pixels[..., :1]
    return pixels.reshape(len(pixels), -1)
