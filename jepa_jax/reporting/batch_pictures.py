"""Pictures of what a model gets: a batch's views, its masks, and where its crops lie."""

import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from jepa_jax.batch.masks import MaskedBlocks, MultiBlock
from jepa_jax.batch.spec import BatchSpec, first_view
from jepa_jax.config import Config
from jepa_jax.data.originals import Original
from jepa_jax.reporting.pictures import blank_patches, displayable, show

_CELL = 1.5  # inches
_COLOURS = matplotlib.color_sequences["tab10"]
_LINES = ("-", "--", ":")


def views_picture(
    path: pathlib.Path,
    needs: BatchSpec,
    batch: dict[str, np.ndarray],
    names: Sequence[str],
) -> None:
    """All views of a batch's images as they arrive, a row for each image.

    Args:
      batch: pixels, uint8 or uint16, [B, H, W, C] or [B, V, H, W, C].
      names: of the rows [B].
    """
    columns: list[tuple[str, np.ndarray]] = []
    for view in needs.views:
        images = batch[view.name]
        stacked = images[:, None] if view.number is None else images  # [B, V, H, W, C]
        size = f"{view.size[0]} x {view.size[1]}"
        for i in range(stacked.shape[1]):
            number = "" if view.number is None else f" {i + 1}"
            columns.append((f"{view.name}{number}\n{size}", displayable(stacked[:, i])))
    _table(path, columns, names)


def masks_picture(
    path: pathlib.Path,
    config: Config,
    needs: BatchSpec,
    batch: dict[str, np.ndarray],
    names: Sequence[str],
) -> None:
    """A batch's images, and the patches that are seen and that are predicted; a row for each image.

    Args:
      batch: with the arrays of `needs.masks`, which are not None.
      names: of the rows [B].
    """
    indices: dict[str, np.ndarray] = {}
    if isinstance(needs.masks, MultiBlock):
        targets = batch["target_index"]  # [B, M, T]
        indices["context"] = batch["context_index"]
        indices |= {f"target {i + 1}": targets[:, i] for i in range(targets.shape[1])}
    elif isinstance(needs.masks, MaskedBlocks):
        indices["masked"] = batch["masked_index"]
    else:
        indices = {"visible": batch["visible_index"], "masked": batch["masked_index"]}
    images = displayable(first_view(needs, batch))  # [B, H, W, 3]
    columns: list[tuple[str, Any]] = [(needs.views[0].name, images)]
    for title, index in indices.items():
        shown = [blank_patches(image, i, config) for image, i in zip(images, index, strict=True)]
        columns.append((f"{title}\n{index.shape[1]} of {config.grid[0] * config.grid[1]}", shown))
    _table(path, columns, names)


def crops_picture(
    path: pathlib.Path, needs: BatchSpec, originals: Sequence[Original], names: Sequence[str]
) -> None:
    """Whole images with the boxes of their crops.

    A colour stands for an epoch; with several crops an epoch it stands for a view, and the style of
    the line for the epoch.

    Args:
      names: of the images.
    """
    epochs = sorted({epoch for one in originals for _, epoch in one.boxes})
    single = len(needs.views) == 1 and needs.views[0].number in (None, 1)
    colours = dict(zip(epochs if single else [v.name for v in needs.views], _COLOURS, strict=False))
    styles = {epoch: "-" if single else _LINES[i % len(_LINES)] for i, epoch in enumerate(epochs)}
    columns = min(4, len(originals))
    rows = -(-len(originals) // columns)
    tallest = max(one.pixels.shape[0] / one.pixels.shape[1] for one in originals)
    size = (2.6 * columns, (2.6 * tallest + 0.2) * rows + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, one, name in zip(axes, originals, names, strict=False):
        axis.imshow(displayable(one.pixels[None])[0], interpolation="nearest")
        axis.set_title(name, fontsize=9)
        for (view, epoch), boxes in one.boxes.items():
            line = {"edgecolor": colours[epoch if single else view], "linestyle": styles[epoch]}
            for top, left, height, width in boxes:
                axis.add_patch(_box(left - 0.5, top - 0.5, width, height, **line))
        height, width = one.pixels.shape[:2]
        margin = 0.02 * max(height, width)  # for the lines at the border
        axis.set_xlim(-0.5 - margin, width - 0.5 + margin)
        axis.set_ylim(height - 0.5 + margin, -0.5 - margin)
    legend = {
        f"epoch {key}" if single else str(key): _box(0.0, 0.0, 1.0, 1.0, edgecolor=colour)
        for key, colour in colours.items()
    }
    if not single:
        legend |= {
            f"epoch {epoch}": _box(0.0, 0.0, 1.0, 1.0, edgecolor="grey", linestyle=style)
            for epoch, style in styles.items()
        }
    figure.legend(
        list(legend.values()),
        list(legend),
        loc="outside lower center",
        ncols=len(legend),
        fontsize=9,
    )
    figure.savefig(path, dpi=110)


def _box(left: float, top: float, width: float, height: float, **line: Any) -> Rectangle:
    """A frame that stands out on any picture."""
    around = [withStroke(linewidth=2.6, foreground="white", alpha=0.6)]
    return Rectangle(
        (left, top), width, height, fill=False, linewidth=1.3, path_effects=around, **line
    )


def _table(path: pathlib.Path, columns: Sequence[tuple[str, Any]], names: Sequence[str]) -> None:
    """Pictures [H, W, 3] in columns with titles, and rows with names."""
    figure = Figure(
        figsize=(_CELL * len(columns) + 0.4, _CELL * len(names) + 0.5), layout="constrained"
    )
    axes = figure.subplots(len(names), len(columns), squeeze=False)
    for column, (title, pictures) in enumerate(columns):
        axes[0, column].set_title(title, fontsize=9)
        for row, picture in enumerate(pictures):
            show(axes[row, column], picture)
    for row, name in enumerate(names):
        axes[row, 0].set_ylabel(name, fontsize=9)
    figure.savefig(path, dpi=110)
