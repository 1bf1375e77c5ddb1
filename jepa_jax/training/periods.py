"""When something periodic is due: by steps, or by the clock."""

import time
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils


def due(step: int, period: int | None) -> bool:
    """Whether something periodic happens after this step; a period of None means never."""
    return period is not None and step % period == 0


class Timer:
    """Tells when some minutes have gone by since it was last reset.

    Several processes must all do the same after the same step, and their clocks differ: process 0
    decides, and tells the others. They wait for each other then, so ask rarely.
    """

    def __init__(self, minutes: float | None, *, clock: Callable[[], float] = time.monotonic):
        """Args: minutes: None for never; clock: () -> seconds."""
        self._seconds = None if minutes is None else 60.0 * minutes
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        self._start = self._clock()

    def due(self) -> bool:
        if self._seconds is None:
            return False
        elapsed = self._clock() - self._start >= self._seconds
        if jax.process_count() == 1:
            return elapsed
        return bool(multihost_utils.broadcast_one_to_all(np.int32(elapsed)))
