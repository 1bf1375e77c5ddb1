"""The table of a comparison, and what it says in a sentence."""

import sys

import numpy as np

from jepa_jax.evaluation.comparison import Representation

READ_ON = "docs/reading_a_run.md"


def print_table(
    accuracies: dict[str, dict[str, float]],
    representations: dict[str, Representation],
    *,
    title: str = "test accuracy",
) -> None:
    """Writes accuracies by protocol and by representation to standard error, and what they say."""
    names = list(next(iter(accuracies.values())))
    width = max(16, len(title) + 2)
    lines = [f"\n{title:<{width}}" + "".join(f"{p:>10}" for p in accuracies)]
    for name in names:
        row = "".join(f"{accuracies[protocol][name]:>10.3f}" for protocol in accuracies)
        lines.append(f"{name.replace('_', ' '):<{width}}{row}")
    for name, representation in representations.items():
        if reduced := representation.reduced:
            lines.append(
                f"{name.replace('_', ' ')}: {reduced['columns']:,} columns, reduced to "
                f"{reduced['components']} principal components of the training images"
            )
    num_test = len(next(iter(representations.values())).test.labels)
    verdict = judge(accuracies, num_test)
    lines += [verdict] if verdict else []
    print("\n".join(lines) + "\n", file=sys.stderr)


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
