"""Alarms of a run whose numbers are finite and wrong: loss spikes, explosion, collapse."""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jepa_jax.training.verdict import verdict

_WINDOW = 200  # losses that say what is usual
_FEW = 20  # with fewer of them their spread is not known yet
_RATIO = 4.0  # to the median, from which on a loss can be a spike; of few losses, to the largest
_SPREADS = 8.0  # ... if it is also so many standard deviations of the log loss above it
_KEPT = 3  # spikes whose checkpoints are kept: a run may have many, and a disk has an end


class LossWatch:
    """Tells whether a loss is far above those of the steps before it.

    Compared are logarithms, by median and median absolute deviation, which single spikes do not
    move: what is far above depends on how much the losses of this objective differ from step to
    step. A spike is not counted among the usual losses.

    Attributes:
      high_for: steps in a row with a spike.
    """

    def __init__(self) -> None:
        self._usual: collections.deque[float] = collections.deque(maxlen=_WINDOW)
        self.high_for = 0

    def see(self, loss: float) -> float | None:
        """The loss of the next step -> how many times the median it is, if that is a spike."""
        value = math.log(max(abs(loss), 1e-30))
        center = float(np.median(self._usual)) if self._usual else value
        if value <= self._highest(value, center):
            self._usual.append(value)
            self.high_for = 0
            return None
        self.high_for += 1
        return math.exp(min(value - center, 700.0))

    def _highest(self, value: float, center: float) -> float:
        """That is no spike."""
        if len(self._usual) < _FEW:  # at its start a loss is rarely lower than later
            return max(self._usual, default=value) + math.log(_RATIO)
        deviation = 1.4826 * float(np.median(np.abs(np.asarray(self._usual) - center)))
        return center + max(math.log(_RATIO), _SPREADS * deviation)


def before_spikes(steps: Sequence[int], spikes: Sequence[int]) -> set[int]:
    """Of the steps of checkpoints, those just before each of the last spikes."""
    earlier = ([step for step in steps if step < spike] for spike in spikes[-_KEPT:])
    return {max(some) for some in earlier if some}


def end_of(rows: Sequence[Mapping[str, Any]], *, high_for: int, ceiling: int) -> str | None:
    """What is wrong with a run that has taken all its steps; None: nothing that can be seen.

    Args:
      rows: of its `metrics.jsonl`, oldest first.
      high_for: its last steps in a row with a loss spike.
      ceiling: see `verdict`.
    """
    if high_for:
        return f"its loss has exploded: the last {high_for} steps are a spike"
    found = verdict(rows, ceiling=ceiling)
    if found is not None and found.word == "collapsed":
        return f"its features have collapsed ({found.sentence})"
    return None
