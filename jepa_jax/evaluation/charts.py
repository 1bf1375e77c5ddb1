"""Charts of several runs in one picture: what was measured over the steps, and spectra."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Told apart with any colour vision, and quiet.
COLOURS = ("#2f6690", "#c1662f", "#4c8055", "#8a5a9e", "#a8843a", "#555555")
_INK, _QUIET = "#333333", "#8a8a8a"


class Line(NamedTuple):
    """A run's values: its name and colour, and points (x, y)."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]


def line_chart(
    path: pathlib.Path, lines: Sequence[Line], *, most: float | None = None, x: str = "step"
) -> None:
    """Draws values over steps.

    Args:
      most: the largest value there can be, as a dashed line.
      x: what the horizontal axis counts.
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
    if most is not None:
        axis.axhline(most, linestyle="--", color=_QUIET, linewidth=1)
        axis.set_ylim(0, 1.1 * most)
    axis.set_xlabel(x)
    _finish(axis, path, legend=len(lines) > 1)


def spectrum_chart(path: pathlib.Path, lines: Sequence[Line]) -> None:
    """Draws eigenvalues by rank, on logarithmic axes."""
    axis = _new(path)
    for line in lines:
        axis.loglog(
            *zip(*line.points, strict=True), color=line.colour, label=line.name, linewidth=1.8
        )
    low = min(y for line in lines for _, y in line.points[: max(1, int(0.98 * len(line.points)))])
    axis.set_ylim(bottom=low / 2)  # the last ones are rounding
    axis.set_xlabel("rank of the eigenvalue")
    _finish(axis, path, legend=len(lines) > 1)


def _new(path: pathlib.Path) -> Axes:
    path.parent.mkdir(parents=True, exist_ok=True)
    return Figure(figsize=(4.8, 3.0), layout="constrained").subplots()


def _finish(axis: Axes, path: pathlib.Path, *, legend: bool) -> None:
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
