"""Maps of patch features: principal components at several resolutions, and cosines to a patch."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from jepa_jax.config import Config
from jepa_jax.data.pipeline import eval_batches
from jepa_jax.data.sources import Source
from jepa_jax.reporting.pictures import shared_colours

SCALES = (1.0, 1.5, 2.0)  # of the side that the model was trained at


class Level(NamedTuple):
    """Images at one resolution.

    Attributes:
      pixels: [n, H, W, C].
      tokens: float32 [n, N, D].
      grid: rows and columns of patches.
    """

    pixels: np.ndarray
    tokens: np.ndarray
    grid: tuple[int, int]


def encode_levels(
    encode: Callable[[Any, Any], Any],
    weights: Any,
    config: Config,
    source: Source,
    index: np.ndarray,
) -> list[Level]:
    """Tokens of the same images, read at each of `SCALES` times the size of the training's crops.

    Bad images are left out. The sides are rounded to whole patches; positions are interpolated.
    """
    encoder, patch = jax.jit(encode), config.model.patch_size
    levels = []
    for scale in SCALES:
        rows, columns = (round(scale * side) for side in config.grid)
        data = dataclasses.replace(config.data, image_size=(rows * patch, columns * patch))
        bad: list[int] = []
        (pixels,) = eval_batches(data, source, index=index, batch_size=len(index), bad=bad)
        pixels = pixels[~np.isin(index, bad)]
        levels.append(Level(pixels, np.asarray(encoder(weights, pixels)), (rows, columns)))
    return levels


def component_maps(levels: list[Level]) -> list[Float[np.ndarray, "n h w 3"]]:
    """Three principal components as colours, which mean the same at all resolutions."""
    colours = shared_colours([level.tokens for level in levels])
    return [
        colour.reshape(len(colour), *level.grid, 3)
        for colour, level in zip(colours, levels, strict=True)
    ]


def cosine_maps(level: Level, row: int, column: int) -> Float[np.ndarray, "n h w"]:
    """Cosine of each patch's feature with that of one patch of the same image.

    A position's mean over the images is taken off first, as for the components: otherwise all
    patches would be alike.
    """
    centred = level.tokens - level.tokens.mean(axis=0)  # [n, N, D]
    unit = centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-12)
    chosen = unit[:, row * level.grid[1] + column]  # [n, D]
    return np.einsum("nkd,nd->nk", unit, chosen).reshape(len(unit), *level.grid)
