"""One line on how a run is doing, from its signs of collapse; docs/reading_a_run.md explains it.

The bounds were set on runs that were made to collapse and on good ones: tests/data/runs.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

_WINDOW = 3  # measurements that are averaged, since a batch's rank is noisy
_DEAD_RANK, _DEAD_STD = 1.5, 0.1  # of the features, and of their spread at the start
_LOW, _HIGH = 0.15, 0.25  # shares of the ceiling
_RISEN, _FALLEN = 1.25, 0.9  # of the rank at the first measurements
_POSITION = 0.5


class Verdict(NamedTuple):
    word: str  # learning, undecided, collapsing or collapsed
    sentence: str

    def __str__(self) -> str:
        return self.sentence


def verdict(rows: Sequence[Mapping[str, float]], *, ceiling: int) -> Verdict | None:
    """What the signs of collapse of a run say.

    Args:
      rows: of `metrics.jsonl`, oldest first; those without an effective rank are skipped.
      ceiling: the largest effective rank there can be, the smaller of features and images.

    Returns:
      None before anything was measured.
    """
    measured = [row for row in rows if "effective_rank" in row]
    if not measured:
        return None
    rank, position, spread = (
        _mean(measured[-_WINDOW:], name)
        for name in ("effective_rank", "position_share", "feature_std")
    )
    first = _mean(measured[:_WINDOW], "effective_rank")
    before = _mean(measured[-2 * _WINDOW : -_WINDOW] or measured[-1:], "effective_rank")
    trend = "rising" if rank > 1.03 * before else "falling" if rank < 0.97 * before else "steady"
    said = (
        f"effective rank {rank:.1f} of {ceiling}, {trend}; position alone is {position:.0%} of the "
        "variance"
    )
    if rank < _DEAD_RANK or spread < _DEAD_STD * _mean(measured[:_WINDOW], "feature_std"):
        word, advice = "collapsed", ": all images look alike to it. Stop it"
    elif rank < _LOW * ceiling and (rank < _FALLEN * first or position > _POSITION):
        word, advice = "collapsing", ""
    elif len(measured) > _WINDOW and (rank > _HIGH * ceiling or rank > _RISEN * first):
        return Verdict("learning", f"{said}: learning")
    else:
        word, advice = "undecided", ""
    return Verdict(word, f"{said}: {word}{advice}; see docs/reading_a_run.md")


def _mean(rows: Sequence[Mapping[str, float]], name: str) -> float:
    return float(np.mean([row.get(name, np.nan) for row in rows]))
