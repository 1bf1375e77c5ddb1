"""Input and devices that hang: told of, and ended within a limit."""

import contextlib
import faulthandler
import logging
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

from jepa_jax.errors import StalledInputError, StoppedRunError

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_POLL_SECONDS = 0.5
_LONGEST_TICK = (
    5.0  # seconds: between two looks at the clock; this process was stopped, if more go by
)
_TOLD_AFTER = 0.1  # of the limit
_END_SECONDS = 5.0  # for the thread to end, when no batch is wanted any more
_THREAD = "jepa_jax input"
COMPILER = "jepa_jax compiler"  # the threads of `compilation.compile_ahead`


class Interrupted(Exception):
    """The run was asked to stop while it waited for a batch, or for a step to be compiled."""


def in_time(
    batches: Iterator[_T], minutes: float | None, interrupted: Callable[[], bool]
) -> Generator[_T, None, None]:
    """The same batches, each waited for no longer than a limit.

    They are drawn in a thread, one when it is asked for: Python handles a signal in its main thread
    only, and not while that is in TensorFlow.

    Args:
      minutes: the limit; None: none.
      interrupted: whether to stop waiting.

    Raises:
      StalledInputError: a batch has not come within the limit.
      Interrupted: while one was waited for.
      whatever `batches` raises.
    """
    wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
    drawn: queue.SimpleQueue[Any] = queue.SimpleQueue()
    thread = threading.Thread(
        target=_draw, args=(batches, wanted, drawn), name=_THREAD, daemon=True
    )
    thread.start()
    try:
        while True:
            wanted.put(True)
            batch, error = _wait(drawn, minutes, interrupted)
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield batch
    finally:
        wanted.put(False)
        thread.join(_END_SECONDS)


def _draw(
    batches: Iterator[_T], wanted: "queue.SimpleQueue[bool]", drawn: "queue.SimpleQueue[Any]"
) -> None:
    with contextlib.ExitStack() as closing:
        if hasattr(batches, "close"):
            closing.callback(batches.close)
        while wanted.get():
            try:
                drawn.put((next(batches), None))
            except BaseException as error:  # it is raised where the batch was asked for
                drawn.put((None, error))
                return


def _wait(
    drawn: "queue.SimpleQueue[Any]", minutes: float | None, interrupted: Callable[[], bool]
) -> Any:
    time_waited, told = _RunningTime(), False
    limit = math.inf if minutes is None else 60 * minutes
    while True:
        with contextlib.suppress(queue.Empty):
            return drawn.get(timeout=_POLL_SECONDS)
        if interrupted():
            raise Interrupted
        waited = time_waited.tick()
        if waited > _TOLD_AFTER * limit and not told:
            log.warning("warning: the next batch has been waited for for %.0f s", waited)
            told = True
        if waited > limit:
            faulthandler.dump_traceback(all_threads=True)  # of Python; TensorFlow's are not shown
            raise StalledInputError(
                f"no batch came for {waited:.0f} s (config.stall_minutes = {minutes}): the "
                "disk, the network or the decoding of an image hangs"
            )


class _RunningTime:
    """Seconds since it was made, without those for which this process was stopped."""

    def __init__(self) -> None:
        self._seconds, self._last = 0.0, time.monotonic()

    def tick(self) -> float:
        """To be asked often."""
        last, self._last = self._last, time.monotonic()
        self._seconds += min(self._last - last, _LONGEST_TICK)
        return self._seconds


def threads_at_work() -> bool:
    """Whether an orderly end of the process would wait: for a batch, or for a compiler."""
    return any(thread.name.startswith((_THREAD, COMPILER)) for thread in threading.enumerate())


class Watchdog:
    """Ends this process when what it waits for takes too long, as a device that hangs does.

    Nothing can be saved then: the state is where the device is.
    """

    def __init__(self, minutes: float | None):
        """Args: minutes: the limit; None: none."""
        self._doing: tuple[str] | None = None  # another object each time
        self._closed = threading.Event()
        if minutes is not None:
            threading.Thread(target=self._watch, args=(minutes,), daemon=True).start()

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        self._doing = (what,)
        try:
            yield
        finally:
            self._doing = None

    def close(self) -> None:
        self._closed.set()

    def _watch(self, minutes: float) -> None:
        limit = 60 * minutes
        doing, time_waited = None, _RunningTime()
        while not self._closed.wait(min(_POLL_SECONDS, limit / 4)):
            if self._doing is not doing:
                doing, time_waited = self._doing, _RunningTime()
            if time_waited.tick() <= limit or doing is None:
                continue
            faulthandler.dump_traceback(all_threads=True)
            print(
                f"error: {doing[0]} has taken longer than config.stall_minutes = {minutes}; "
                "a device or another process hangs; the same command resumes from the newest "
                "checkpoint",
                file=sys.stderr,
                flush=True,
            )
            os._exit(StoppedRunError.exit_code)
