"""Frozen features for heads: of an encoder's blocks, or of the pixels, as the control."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from jepa_jax.batch.pixels import normalize
from jepa_jax.config import Config, DataConfig
from jepa_jax.data.sources import Source
from jepa_jax.evaluation.features import colour_histograms
from jepa_jax.models.patches import patchify
from jepa_jax.objectives.objective import Objective
from jepa_jax.training.sharding import batch_sharding, replicated, traced_on

_WIDEST_PIXELS = 4096  # columns of a linear head on raw pixels; above, colour histograms


class Backbone(NamedTuple):
    """Where features come from.

    Attributes:
      name: of what they are, for tables and messages.
      compute: pixels [B, H, W, C] -> name -> [B, D] or [B, N, D], on the devices.
      devices: that B must be a multiple of.
    """

    name: str
    compute: Callable[[np.ndarray], dict[str, Array]]
    devices: int

    def batch_size(self, wanted: int) -> int:
        """The next multiple of the devices."""
        return -(-wanted // self.devices) * self.devices

    def shapes(self, data: DataConfig, source: Source) -> dict[str, jax.ShapeDtypeStruct]:
        """Of the features of one batch: name -> [devices, D] or [devices, N, D]."""
        shape = (self.devices, *data.image_size, source.channels)
        found = self.compute(np.zeros(shape, source.dtype))
        return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in found.items()}


def of_encoder(
    name: str,
    objective: Objective,
    weights: Any,
    config: Config,
    mesh: Mesh,
    *,
    features: Sequence[str],
) -> Backbone:
    """Features of an encoder's blocks.

    Args:
      features: of "last" and "last_four" (means over the tokens of the last block, or of the last
        four, concatenated; of all where there are fewer), and their tokens, "tokens" and
        "tokens_last_four".
    """
    depth = config.model.depth
    several = {"last_four", "tokens_last_four"} & set(features)
    four = tuple(range(max(depth - 4, 0), depth)) if several else (depth - 1,)

    def compute(weights: Any, images: Array) -> dict[str, Array]:
        tokens: Any = objective.encode(weights, images, four)  # [L, B, N, D]
        pooled = jnp.mean(tokens, axis=2)  # [L, B, D]
        found = {
            "last": pooled[-1],
            "last_four": jnp.swapaxes(pooled, 0, 1).reshape(len(images), -1),  # [B, L * D]
            "tokens": tokens[-1],
            "tokens_last_four": jnp.moveaxis(tokens, 0, 2).reshape(*tokens.shape[1:3], -1),
        }
        return {which: found[which] for which in features}

    held = jax.device_put(weights, replicated(mesh))
    compiled = jax.jit(traced_on(mesh, compute), out_shardings=batch_sharding(mesh))
    return Backbone(name, lambda images: compiled(held, _put(images, mesh)), mesh.size)


def of_pixels(config: Config, data: DataConfig, mesh: Mesh, *, features: Sequence[str]) -> Backbone:
    """The images themselves: all pixels, or colour histograms where those are too many; as tokens,
    the pixels of each patch."""
    height, width = data.image_size
    fits = height * width * data.channels <= _WIDEST_PIXELS or "tokens" in features

    def compute(images: Array) -> dict[str, Array]:
        x = normalize(images, data.mean, data.std)
        if "tokens" in features:
            return {"tokens": patchify(x, config.model.patch_size)}
        flat = x.reshape(len(images), -1)
        return dict.fromkeys(features, flat)

    compiled = jax.jit(compute, out_shardings=batch_sharding(mesh))
    if fits:
        return Backbone("raw_pixels", lambda images: compiled(_put(images, mesh)), mesh.size)

    def histograms(images: np.ndarray) -> dict[str, Array]:
        return dict.fromkeys(features, _put(colour_histograms(images), mesh))

    return Backbone("colour_histograms", histograms, mesh.size)


def _put(array: np.ndarray, mesh: Mesh) -> Array:
    return jax.device_put(array, batch_sharding(mesh))
