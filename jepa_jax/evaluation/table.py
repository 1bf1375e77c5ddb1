"""The table of a comparison, and what it says in a sentence."""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from jepa_jax.evaluation.comparison import Representation
from jepa_jax.evaluation.scores import MEASURE, measured

READ_ON = "docs/reading_a_run.md"
_TITLES = {
    "accuracy": "test accuracy",
    "mean_average_precision": "test mAP",
    "rmse": "test RMSE",
    "miou": "test mIoU",
}


def print_table(
    results: Mapping[str, Mapping[str, Mapping[str, Any]]],
    *,
    title: str | None = None,
    reduced: Mapping[str, Mapping[str, int]] | None = None,
    num_test: int,
) -> None:
    """Writes measures with their intervals to standard error, and what they say.

    Args:
      results: by protocol and by representation, what `scores.score` gives.
      title: None: the name of the measure.
      reduced: representations that were reduced to principal components.
      num_test: images that they were measured on.
    """
    names = list(next(iter(results.values())))
    measure = measured(results[next(iter(results))][names[0]])
    title = title or _TITLES[measure]
    width = max(16, len(title) + 2)
    lines = [f"\n{title:<{width}}" + "".join(f"{protocol:>22}" for protocol in results)]
    for name in names:
        row = ""
        for of_protocol in results.values():
            low, high = of_protocol[name]["interval"]
            row += f"{of_protocol[name][measure]:>10.3f}{f'{low:.3f}-{high:.3f}':>12}"
        lines.append(f"{name.replace('_', ' '):<{width}}{row}")
    for protocol, rows in results.items():
        if any(row.get("std") is not None for row in rows.values()):
            stds = ", ".join(f"{name.replace('_', ' ')} {rows[name]['std']:.3f}" for name in names)
            number = len(rows[names[0]]["splits"])
            lines.append(
                f"{protocol}: means of {number} splits, whose standard deviations are {stds}"
            )
    for name, columns in (reduced or {}).items():
        lines.append(
            f"{name.replace('_', ' ')}: {columns['columns']:,} columns, reduced to "
            f"{columns['components']} principal components of the training images"
        )
    if measure == MEASURE["classification"]:
        values = {
            protocol: {name: row[measure] for name, row in rows.items()}
            for protocol, rows in results.items()
        }
        verdict = judge(values, num_test)
        lines += [verdict] if verdict else []
    print("\n".join(lines) + "\n", file=sys.stderr)


def comparison_line(found: Mapping[str, Any]) -> str:
    """What `scores.paired` says of the pretrained encoder and another, in a sentence."""
    low, high = found["interval"]
    return (
        f"pretrained less against, mean over the test images: {found['difference']:+.3f} "
        f"(95 % {low:+.3f} to {high:+.3f}), p = {found['p_value']:.2g} ({found['test']})"
    )


def reduced_of(representations: Mapping[str, Representation]) -> dict[str, dict[str, int]]:
    """Those that were reduced: name -> columns before, and principal components after."""
    return {name: found.reduced for name, found in representations.items() if found.reduced}


def judge(accuracies: dict[str, dict[str, float]], num_test: int) -> str | None:
    """A sentence on a pretrained encoder that is below one of its controls, or None.

    Args:
      accuracies: by protocol and by representation.
      num_test: images that they were measured on, which limit what a small difference means.
    """
    above_random = _lead(accuracies, "random_init")
    if below := _behind(above_random):
        p = np.mean([of["pretrained"] for of in accuracies.values()])
        error = np.sqrt(p * (1 - p) / num_test)
        return (
            f"The pretrained encoder is below its own random initialisation: {below}; one standard "
            f"error is {error:.3f}. If it stays so, training made the features worse than none "
            f"would have: see {READ_ON}"
        )
    below = _behind(_lead(accuracies, "raw_pixels"))
    if below and min(above_random.values()) > 0:
        return f"pretrained: above its random initialisation, below raw pixels {below}"
    return None


def _lead(accuracies: dict[str, dict[str, float]], control: str) -> dict[str, float]:
    """By how much the pretrained encoder is above a control: by protocol; empty without it."""
    return {
        protocol: of["pretrained"] - of[control]
        for protocol, of in accuracies.items()
        if control in of
    }


def _behind(lead: dict[str, float]) -> str:
    return ", ".join(f"by {-by:.3f} ({protocol})" for protocol, by in lead.items() if by < 0)
