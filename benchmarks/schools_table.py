"""The tables and the figure of benchmarks/schools.py."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
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
            of_name = [row for row in rows if row["objective"] == name]
            group = [row for row in of_name if row["budget"] == budget]
            if budget == "flops" and name in ("ijepa", "random_init", "raw_pixels"):
                group = [row for row in of_name if row["budget"] == "steps"]
            if group:
                lines.append(_line(name, group))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


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
    drawing = Figure(figsize=(9.5, 4.4), layout="constrained")
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
            axis.annotate(label, means[-1], fontsize=7, xytext=(4, 2), textcoords="offset points")
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("TFLOP of training")
        axis.set_ylabel(f"accuracy, {title}")
        axis.spines[["top", "right"]].set_visible(False)
    drawing.savefig(path, dpi=140)
