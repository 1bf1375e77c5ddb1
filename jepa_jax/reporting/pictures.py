"""Pictures of a run, as PNG: curves, and principal components of the features."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from jepa_jax.batch.pixels import most_of
from jepa_jax.config import Config

_HIDDEN = np.array([0.75, 0.84, 0.95])  # colour of patches that a panel does not show


def curves_picture(path: pathlib.Path, config: Config, metrics: list[dict[str, Any]]) -> None:
    """What was measured over the steps of a run; a dashed line is the most that there can be."""
    ceiling = min(config.model.embed_dim, config.batch_size)
    panels = {
        "loss": ("loss", None),
        "effective_rank": ("effective rank of the features", ceiling),
        "position_share": ("variance that is position alone", 1.0),
        "knn_accuracy": ("k-NN accuracy, training images", None),
        "linear_accuracy": ("linear accuracy, training images", None),
    }
    panels = {name: panels[name] for name in panels if any(name in row for row in metrics)}
    figure = Figure(figsize=(4 * len(panels), 3), layout="constrained")
    for axis, (name, (title, most)) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        points = [(row["step"], row[name]) for row in metrics if name in row]
        axis.plot(*zip(*points, strict=True), marker=".", markersize=3, linewidth=1)
        if most is not None:
            axis.axhline(most, linestyle="--", color="grey", linewidth=1)
            place = {"transform": axis.get_yaxis_transform(), "va": "bottom", "fontsize": 8}
            axis.text(0.02, most, f"at most {most:g}", color="grey", **place)
            axis.set_ylim(0, 1.12 * most)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def pca_picture(
    path: pathlib.Path,
    images: np.ndarray,
    tokens: dict[str, Float[np.ndarray, "n N D"]],
    grid: tuple[int, int],
) -> None:
    """Three principal components of the tokens as red, green and blue.

    Args:
      images: pixels, uint8 or uint16.
      tokens: title -> the images' tokens, whose components are computed over all the images.
    """
    figure = Figure(
        figsize=(1.2 * len(images) + 1.4, 1.3 * (1 + len(tokens))), layout="constrained"
    )
    axes = figure.subplots(1 + len(tokens), len(images), squeeze=False)
    rows = {"image": displayable(images)}
    for title, of_images in tokens.items():
        rows[title] = principal_colours(of_images).reshape(len(images), *grid, 3)
    for row, (title, pictures) in enumerate(rows.items()):
        for column, picture in enumerate(pictures):
            show(axes[row, column], picture)
        axes[row, 0].set_ylabel(title, fontsize=10)
    figure.savefig(path, dpi=110)


def principal_colours(tokens: Float[np.ndarray, "n N D"]) -> Float[np.ndarray, "n N 3"]:
    """The tokens' first three principal components, each stretched to 0..1.

    A position's mean over the images is taken off first: it shows the position table, and else
    would be most of the picture.
    """
    return shared_colours([tokens])[0]


def shared_colours(levels: Sequence[Float[np.ndarray, "n _ D"]]) -> list[np.ndarray]:
    """The same of tokens [n, N, D] with several N, whose components are those of all together."""
    width = levels[0].shape[-1]
    centred = [(tokens - tokens.mean(axis=0)).reshape(-1, width) for tokens in levels]
    components = PCA(n_components=3, svd_solver="full").fit_transform(np.concatenate(centred))
    low, high = np.percentile(components, (2, 98), axis=0)
    colours = np.clip((components - low) / (high - low), 0, 1)
    parts = np.split(colours, np.cumsum([len(part) for part in centred])[:-1])
    return [
        part.reshape(*tokens.shape[:2], 3).astype(tokens.dtype)
        for part, tokens in zip(parts, levels, strict=True)
    ]


def displayable(images: np.ndarray) -> Float[np.ndarray, "n H W 3"]:
    """Pixels [n, H, W, C] as colours in 0..1: of more than three channels, the first three."""
    shown = images.astype(np.float32) / most_of(images)
    if images.shape[-1] in (1, 2):
        return np.repeat(shown[..., :1], 3, axis=-1)
    return shown[..., :3]


def blank_patches(image: np.ndarray, index: np.ndarray, config: Config) -> np.ndarray:
    """The image [H, W, 3] with all patches blanked but those of an index [n]."""
    shown = np.zeros(config.grid[0] * config.grid[1], bool)
    shown[index] = True
    shown = shown.reshape(config.grid).repeat(config.model.patch_size, 0)
    shown = shown.repeat(config.model.patch_size, 1)  # [H, W]
    return np.where(shown[..., None], image, _HIDDEN)


def show(axis: Any, picture: np.ndarray) -> None:
    """A picture [H, W, 3] of colours in 0..1, without ticks."""
    axis.imshow(picture, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
