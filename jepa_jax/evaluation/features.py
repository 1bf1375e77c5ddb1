"""Features of many images with a frozen encoder."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from jepa_jax.objectives.objective import Objective
from jepa_jax.training.sharding import batch_sharding, replicated, traced_on

Pool = Callable[[Any, np.ndarray], Array]

HISTOGRAM_BINS = 8  # of each of three channels


def make_pool(
    objective: Objective,
    mesh: Mesh | None = None,
    *,
    layers: tuple[int, ...] | None = None,
    pooled: bool = True,
) -> Pool:
    """Jitted (weights of an encoder, images [B, H, W, 3]) -> mean over each image's tokens [B, D].

    Args:
      mesh: see `make_encode`.
      layers: blocks counted from 0, ascending, whose means are concatenated: [B, L * D]; None: the
        last alone.
      pooled: False: not the mean, but all tokens, [B, N, L * D].
    """

    def pool(weights: Any, images: Array) -> Array:
        tokens = objective.encode(weights, images, layers)  # [B, N, D] or [L, B, N, D]
        features = jnp.mean(tokens, axis=-2) if pooled else tokens
        if layers is None:
            return features
        features = jnp.moveaxis(features, 0, -2)  # [B, L, D] or [B, N, L, D]
        return features.reshape(*features.shape[:-2], -1)

    return _over(mesh, pool)


def make_encode(objective: Objective, mesh: Mesh | None = None) -> Pool:
    """Jitted (weights of an encoder, images [B, H, W, 3]) -> tokens [B, N, D].

    Args:
      mesh: to shard the images over its devices; all processes must then give the same images,
        and all get all features.
    """
    return _over(mesh, objective.encode)


def make_classify(objective: Objective, mesh: Mesh | None = None) -> Pool:
    """Jitted ((parameters, objective's state), images [B, H, W, C]) -> logits [B, classes].

    Args:
      objective: one that classifies.
      mesh: see `make_encode`.
    """
    of_objective = objective.classify
    assert of_objective is not None

    def logits(weights: Any, images: Array) -> Array:
        params, state = weights
        return of_objective(params, state, images)

    return _over(mesh, logits)


def _over(mesh: Mesh | None, function: Callable[[Any, Any], Array]) -> Pool:
    if mesh is None:
        return jax.jit(function)
    sharded = jax.jit(traced_on(mesh, function), out_shardings=replicated(mesh))

    def on_mesh(weights: Any, images: np.ndarray) -> Array:
        sharding = batch_sharding(mesh)
        return sharded(
            weights, jax.make_array_from_callback(images.shape, sharding, images.__getitem__)
        )

    return on_mesh


def pooled_features(pool: Pool, weights: Any, batches: Iterable[np.ndarray]) -> np.ndarray:
    """Average-pooled features of every image.

    Args:
      batches: images [B, H, W, 3]; the last may be shorter, and is padded for one compiled shape.

    Returns:
      float32 [n, D].
    """
    parts, size = [], None
    for images in batches:
        size = size or len(images)
        parts.append(pool_padded(pool, weights, images, size))
    return np.concatenate(jax.device_get(parts))


def pool_padded(pool: Pool, weights: Any, images: np.ndarray, size: int) -> Array:
    """Average-pooled features [B, D] of B images, padded to `size` for one compiled shape."""
    padded = np.pad(images, [(0, size - len(images)), (0, 0), (0, 0), (0, 0)])
    return pool(weights, padded)[: len(images)]


def raw_pixels(images: np.ndarray) -> np.ndarray:
    """Images [n, H, W, 3], flattened: the control that needs no network. float32 [n, H * W * 3].

    Grey images, three equal channels, count once.
    """
    mean_channel = images[..., :1]
    if np.array_equal(images, np.broadcast_to(mean_channel, images.shape)):
        images = mean_channel
    return images.reshape(len(images), -1)


def colour_histograms(images: np.ndarray) -> np.ndarray:
    """Shares of an image's pixels in 8 x 8 x 8 bins of its first three channels, float32 [n, 512].

    The control where raw pixels do not fit in memory. Of fewer channels: [n, 8] or [n, 64].

    Args:
      images: uint8 or uint16 [n, H, W, C].
    """
    channels = min(images.shape[-1], 3)
    shift = 8 * images.dtype.itemsize - HISTOGRAM_BINS.bit_length() + 1
    bins = (images[..., :channels] >> shift).astype(np.int64)  # 0..7 each
    number = np.ravel_multi_index(np.moveaxis(bins, -1, 0), (HISTOGRAM_BINS,) * channels)
    flat = number.reshape(len(images), -1)  # [n, H * W]
    counts = np.zeros((len(images), HISTOGRAM_BINS**channels), np.float32)
    np.add.at(counts, (np.arange(len(images))[:, None], flat), 1.0)
    return counts / flat.shape[1]
