"""The tables and the figure of benchmarks/schools.py."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter

_TITLES = {"steps": "Equal optimizer steps", "flops": "Equal arithmetic"}
_SCHOOLS = {
    "ijepa": ("I-JEPA", "prediction of features"),
    "data2vec": ("data2vec", "prediction of features"),
    "mae": ("MAE", "reconstruction"),
    "simclr": ("SimCLR", "invariance"),
    "byol": ("BYOL", "invariance"),
    "vicreg": ("VICReg", "invariance"),
    "lejepa": ("LeJEPA", "invariance"),
    "swav": ("SwAV", "clustering"),
    "dino": ("DINO", "clustering"),
    "msn": ("MSN", "clustering"),
    "supervised": ("supervised", "with labels"),
    "random_init": ("random initialisation", "no training"),
    "raw_pixels": ("raw pixels", "no network"),
}
_COLOURS = {
    "prediction of features": "tab:blue",
    "reconstruction": "tab:green",
    "invariance": "tab:orange",
    "clustering": "tab:red",
    "with labels": "tab:gray",
}


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """Means over the seeds, with the lowest and highest; the two budgets one after the other."""
    parts = []
    rows = _with_speeds(rows)
    for budget, title in _TITLES.items():
        lines = [
            f"### {title}",
            "",
            "| objective | school | seeds | k-NN | k-NN, cosine | linear | effective rank "
            "| position share | steps | TFLOP | images/s | memory, GB |",
            "|---" * 12 + "|",
        ]
        for name in _SCHOOLS:
            if group := _runs(rows, name, budget):
                lines.append(_line(name, group))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Means over the seeds of two probes, for both budgets in one table."""
    lines = [
        "| objective | school | seeds | equal steps: k-NN | linear | equal arithmetic: k-NN "
        "| linear |",
        "|---" * 7 + "|",
    ]
    for name, (title, school) in _SCHOOLS.items():
        groups = [_runs(rows, name, budget) for budget in _TITLES]
        means = [
            f"{np.mean([row[field] for row in group]):.3f}" if group else ""
            for group in groups
            for field in ("knn", "linear")
        ]
        seeds = " and ".join(dict.fromkeys(str(len(group)) for group in groups if group))
        if seeds:
            lines.append(f"| {title} | {school} | {seeds} | {' | '.join(means)} |")
    return "\n".join(lines)


def _runs(rows: Sequence[dict[str, Any]], name: str, budget: str) -> list[dict[str, Any]]:
    """The rows of a table's line; I-JEPA's arithmetic is what the second gives all."""
    if name in ("ijepa", "random_init", "raw_pixels"):
        budget = "steps"
    return [row for row in rows if row["objective"] == name and row["budget"] == budget]


def _with_speeds(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of runs, with speed and memory of the steps in turns; `None` where not measured."""
    found = {row["objective"]: row for row in rows if row["budget"] == "speed"}
    fields = ("images_per_second", "memory")
    return [
        row | {field: found.get(row["objective"], {}).get(field) for field in fields}
        for row in rows
        if row["budget"] != "speed"
    ]


def _line(name: str, group: Sequence[dict[str, Any]]) -> str:
    def mean(field: str, form: str, scale: float = 1.0) -> str:
        values = [row[field] * scale for row in group if row.get(field) is not None]
        return format(float(np.mean(values)), form) if values else "-"

    def spread(field: str) -> str:
        values = [row[field] for row in group]
        text = f"{np.mean(values):.3f}"
        return text if len(values) == 1 else f"{text} ({min(values):.3f} to {max(values):.3f})"

    cells = [
        *_SCHOOLS[name],
        str(len(group)),
        *(spread(field) for field in ("knn", "knn_cosine", "linear")),
        mean("effective_rank", ".1f"),
        mean("position_share", ".2f"),
        mean("optimizer_steps", ".0f"),
        mean("flops", ".1f", 1e-12),
        mean("images_per_second", ".0f"),
        mean("memory", ".2f", 1e-9),
    ]
    return f"| {' | '.join(cells)} |"


def tuning_table(rows: Sequence[dict[str, Any]]) -> str:
    """k-NN between training images, by objective and learning rate."""
    tuned = [row for row in rows if row["budget"] == "tuning"]
    rates = sorted({row["lr"] for row in tuned})
    lines = [f"| objective | {' | '.join(f'{lr:g}' for lr in rates)} |", "|---" * 4 + "|"]
    for name in dict.fromkeys(row["objective"] for row in tuned):
        found = {row["lr"]: row["knn"] for row in tuned if row["objective"] == name}
        cells = [f"{found[lr]:.3f}" if lr in found else "" for lr in rates]
        lines.append(f"| {_SCHOOLS[name][0]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def figure(rows: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """Accuracy against arithmetic: a point for each run, a line through an objective's means."""
    drawing = Figure(figsize=(9.5, 4.8), layout="constrained")
    labels: list[tuple[Axes, str, tuple[float, float]]] = []
    for axis, (field, title) in zip(
        drawing.subplots(1, 2), {"knn": "k-NN", "linear": "linear probe"}.items(), strict=True
    ):
        for name, (label, school) in _SCHOOLS.items():
            group = [row for row in rows if row["objective"] == name and field in row]
            group = [row for row in group if row["budget"] in _TITLES]
            if not group:
                continue
            if school not in _COLOURS:  # a control
                line = float(np.mean([row[field] for row in group]))
                axis.axhline(line, color="black", linewidth=0.8, linestyle=":")
                axis.annotate(
                    label,
                    (0.99, line),
                    xycoords=("axes fraction", "data"),
                    fontsize=7,
                    ha="right",
                    va="bottom",
                )
                continue
            budgets = [[row for row in group if row["budget"] == b] for b in _TITLES]
            means = sorted(
                (np.mean([r["flops"] for r in b]) / 1e12, np.mean([r[field] for r in b]))
                for b in budgets
                if b
            )
            color = _COLOURS[school]
            points = [(row["flops"] / 1e12, row[field]) for row in group]
            axis.scatter(*zip(*points, strict=True), s=10, color=color, alpha=0.4, linewidth=0)
            axis.plot(*zip(*means, strict=True), color=color, linewidth=1, marker="o", markersize=4)
            labels.append((axis, label, means[-1]))
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("TFLOP of training")
        axis.set_ylabel(f"accuracy, {title}")
        axis.spines[["top", "right"]].set_visible(False)
    patches = [Patch(color=color, label=school) for school, color in _COLOURS.items()]
    drawing.legend(
        handles=patches, loc="outside lower center", ncols=len(patches), fontsize=8, frameon=False
    )
    drawing.draw_without_rendering()  # the places of all points are known only then
    taken: list[Any] = []
    for axis, label, point in sorted(labels, key=lambda each: each[2][1]):
        place = axis.transData.transform(point)  # pixels
        shift = 0
        while any(abs(x - place[0]) < 55 and abs(y - place[1] - shift) < 10 for x, y in taken):
            shift += 1
        taken.append((place[0], place[1] + shift))
        axis.annotate(
            label,
            point,
            fontsize=7,
            xytext=(5, shift * 72 / drawing.dpi),
            textcoords="offset points",
        )
    drawing.savefig(path, dpi=140)
