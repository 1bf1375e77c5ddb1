"""How much of a run's time goes by in waiting for data, and what to do about it."""

import os
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

_T = TypeVar("_T")

MATTERS = 0.05  # share of the time from which on waiting is shown, and worth a word
_QUIET_SECONDS = 30.0  # at the start: files come into caches, and other shapes are compiled
_REPEAT_SECONDS = 600.0  # advice that was given is not given again for so long


class InputWait:
    """Measures how long `next` of an iterator takes, on the thread that calls it."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic):
        """Args: clock: () -> seconds."""
        self._clock = clock
        self._waited = 0.0
        self._begun = self._last = clock()
        self._intervals = 0
        self._advised: float | None = None

    def watched(self, batches: Iterator[_T]) -> Iterator[_T]:
        """The same batches; what they take to come is measured."""
        while True:
            start = self._clock()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self._waited += self._clock() - start
            yield batch

    def share(self) -> float:
        """Of the time since this was last called, or since the start, the share spent waiting."""
        now = self._clock()
        share = min(self._waited / max(now - self._last, 1e-9), 1.0)
        self._last, self._waited = now, 0.0
        self._intervals += 1
        return share

    def advice(self, share: float) -> str | None:
        """What to do about the share that was measured last; None: nothing, or it was said.

        Nothing is said of the first interval and the first half minute, nor more often than every
        ten minutes.
        """
        if share <= MATTERS or self._intervals < 2 or self._last - self._begun < _QUIET_SECONDS:
            return None
        if self._advised is not None and self._last - self._advised < _REPEAT_SECONDS:
            return None
        self._advised = self._last
        return (
            f"training waits for data {share:.0%} of the time: give this process more CPU cores "
            f"(it has {_cores()}), or less to do: config.data.reduced_decoding = True for large "
            "JPEGs, images stored at about config.data.image_size, shards (python -m "
            "jepa_jax.data pack) on a fast disk"
        )


def _cores() -> int:
    """The cores that this process may use; Linux tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
