"""Charts of several runs in one picture: what was measured over the steps, and spectra."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Told apart with any colour vision, and quiet.
COLOURS = ("#2f6690", "#c1662f", "#4c8055", "#8a5a9e", "#a8843a", "#555555")
_ROUNDING = 1e-7  # of the largest eigenvalue, with features in float32
_INK, _QUIET, _PAPER = "#333333", "#8a8a8a", "#fcfcfa"


class Line(NamedTuple):
    """A run's values: its name and colour, and points (x, y)."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]


def line_chart(path: pathlib.Path, lines: Sequence[Line], *, with_zero: bool) -> None:
    """Draws values over steps.

    Args:
      with_zero: the vertical axis holds 0, so that small changes look small.
    """
    axis = _new(path)
    for line in lines:
        axis.plot(
            *zip(*line.points, strict=True),
            color=line.colour,
            label=line.name,
            linewidth=1.8,
            marker="o" if len(line.points) < 30 else None,
            markersize=4,
        )
    values = [y for line in lines for _, y in line.points]
    if with_zero:
        axis.set_ylim(1.08 * min(0, *values), 1.08 * max(0, *values) or 0.1)
    axis.ticklabel_format(useOffset=False, style="plain")
    axis.set_xlabel("step")
    _finish(axis, path, legend=len(lines) > 1)


def spectrum_chart(path: pathlib.Path, lines: Sequence[Line]) -> None:
    """Draws eigenvalues by rank, on logarithmic axes; those that are rounding are left out."""
    axis = _new(path)
    for line in lines:
        largest = max(y for _, y in line.points)
        points = [(x, y) for x, y in line.points if y > _ROUNDING * largest] or [(1, 1.0)]
        axis.loglog(*zip(*points, strict=True), color=line.colour, label=line.name, linewidth=1.8)
    axis.set_xlabel("rank of the eigenvalue")
    _finish(axis, path, legend=len(lines) > 1)


def _new(path: pathlib.Path) -> Axes:
    path.parent.mkdir(parents=True, exist_ok=True)
    return Figure(figsize=(4.8, 3.0), facecolor=_PAPER, layout="constrained").subplots()


def _finish(axis: Axes, path: pathlib.Path, *, legend: bool) -> None:
    axis.set_facecolor(_PAPER)
    axis.grid(color="#e6e6e3", linewidth=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color("#bbbbbb")
    axis.tick_params(colors=_INK, labelsize=10, color="#bbbbbb")
    axis.xaxis.label.set_color(_QUIET)
    if legend:
        axis.legend(frameon=False, fontsize=9, labelcolor=_INK)
    figure = axis.get_figure()
    assert isinstance(figure, Figure)
    figure.savefig(path, dpi=150)
