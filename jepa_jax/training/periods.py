"""When something periodic is due: by steps, or by the clock."""

import time
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

_MOST_STEPS = 50  # between two looks at the clock, of several processes


def due(step: int, period: int | None) -> bool:
    """Whether something periodic happens after this step; a period of None means never."""
    return period is not None and step % period == 0


class Timer:
    """Tells when some minutes have gone by since it was last reset.

    Several processes must all do the same after the same step, and their clocks differ: process 0
    decides, and tells the others, as well as after how many steps they will ask it again. They wait
    for each other then, so that is not at every step, unless steps are slow.
    """

    def __init__(self, minutes: float | None, *, clock: Callable[[], float] = time.monotonic):
        """Args: minutes: None for never; clock: () -> seconds."""
        self._seconds = None if minutes is None else 60.0 * minutes
        self._clock = clock
        self._ask_at: int | None = None
        self._asked = (0, clock())  # step, time
        self.reset()

    def reset(self) -> None:
        self._start = self._clock()

    def due(self, step: int) -> bool:
        """Whether the minutes are over; to be asked after every step."""
        if self._seconds is None:
            return False
        if jax.process_count() == 1:
            return self._clock() - self._start >= self._seconds
        if self._ask_at is not None and step < self._ask_at:
            return False
        elapsed, steps = multihost_utils.broadcast_one_to_all(np.array(self._answer(step)))
        self._ask_at = step + int(steps)
        return bool(elapsed)

    def _answer(self, step: int) -> tuple[int, int]:
        """Whether the time is up by this clock, and after how many steps to ask again."""
        assert self._seconds is not None
        now, (last_step, last_time) = self._clock(), self._asked
        self._asked = (step, now)
        left = self._seconds - (now - self._start)
        if left <= 0:
            return 1, 1
        per_step = (now - last_time) / max(step - last_step, 1)
        return 0, int(np.clip(left / max(per_step, 1e-9), 1, _MOST_STEPS))
