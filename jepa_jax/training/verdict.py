"""One line on how a run is doing, from its signs of collapse; docs/reading_a_run.md explains it.

The bounds were set on runs that were made to collapse and on good ones: tests/data/diagnostics.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

_WINDOW = 3  # measurements that are averaged, since a batch's rank is noisy
_LOW, _HIGH = 0.1, 0.25  # of the effective rank, as shares of its ceiling
_RISEN = 1.25  # of its first measurements
_DEAD_RANK, _DEAD_COSINE = 1.5, 0.98
# Of the embeddings, where an objective compares them and not the features: below the first they are
# dead; below the second if they have fallen to this share of their highest.
_DEAD_SPREAD, _LOW_SPREAD, _FALLEN = 1e-3, 0.02, 0.25
_ALIKE, _POSITION = 0.9, 0.5  # cosine between images; share of the variance


class Verdict(NamedTuple):
    word: str  # learning, undecided, collapsing or collapsed
    sentence: str

    def __str__(self) -> str:
        return self.sentence


def verdict(rows: Sequence[Mapping[str, Any]], *, ceiling: int) -> Verdict | None:
    """What the signs of collapse of a run say.

    Args:
      rows: of `metrics.jsonl`, oldest first; those that measure neither the effective rank of the
        features nor, as objectives with a head do, the spread of the embeddings are skipped.
      ceiling: the largest effective rank there can be, the smaller of features and images.

    Returns:
      None before anything was measured.
    """
    spreads = [row["embedding_spread"] for row in rows if "embedding_spread" in row]
    if len(spreads) >= _WINDOW:
        spread = float(np.mean(spreads[-_WINDOW:]))
        if spread < _DEAD_SPREAD or spread < min(_LOW_SPREAD, _FALLEN * max(spreads)):
            # The head alone can do this, and leave the features of the encoder as they were.
            said = f"the embeddings of different images are alike: spread {spread:.4f} of 1"
            return Verdict("collapsed", f"{said}: collapsed; see docs/reading_a_run.md")
    measured = [row for row in rows if "effective_rank" in row]
    if not measured:
        return None
    last, earlier = measured[-_WINDOW:], measured[-2 * _WINDOW : -_WINDOW]
    rank, position, cosine = (
        _mean(last, name) for name in ("effective_rank", "position_share", "feature_cosine")
    )
    first = _mean(measured[:_WINDOW], "effective_rank")
    before = _mean(earlier or last, "effective_rank")
    trend = "rising" if rank > 1.03 * before else "falling" if rank < 0.97 * before else "steady"
    said = (
        f"effective rank {rank:.1f} of {ceiling}, {trend}; cosine between images {cosine:.2f}; "
        f"position alone is {position:.0%} of the variance"
    )
    low, risen = rank < _LOW * ceiling, rank > _RISEN * first
    if rank < _DEAD_RANK and cosine > _DEAD_COSINE:
        word = "collapsed"
    elif low and not risen and (cosine > _ALIKE or position > _POSITION):
        word = "collapsing"
    elif not low and (rank > _HIGH * ceiling or risen):
        return Verdict("learning", f"{said}: learning")
    else:
        word = "undecided"
    return Verdict(word, f"{said}: {word}; see docs/reading_a_run.md")


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(np.mean([row.get(name, np.nan) for row in rows]))
