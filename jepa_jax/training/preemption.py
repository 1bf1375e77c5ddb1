"""Noticing that the machine, or the person before it, wants the run to stop."""

import contextlib
import signal
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def notice_signals() -> Iterator[Callable[[], bool]]:
    """Within it, the first SIGTERM or SIGINT (Ctrl-C) is noted, and a second one acts as usual.

    Yields:
      A function that says whether a signal has come.
    """
    came = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, frame: object) -> None:
        del frame
        came.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
