"""Noticing that the machine, or the person before it, wants the run to stop."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def notice_signals() -> Iterator[Callable[[int], bool]]:
    """Within it, the first SIGTERM or SIGINT (Ctrl-C) is noted, and a second one acts as usual.

    Of several processes, any may get the signal, and all stop after the same step: JAX notes the
    SIGTERM, and `sigint_is_sigterm` makes one of a SIGINT.

    Yields:
      A function that says whether to stop after the step of this number; to be asked every step.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
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
        yield lambda _: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def sigint_is_sigterm() -> None:
    """From here on the first SIGINT (Ctrl-C) is a SIGTERM, and a second one acts as usual.

    For one of several processes, from when JAX notes SIGTERM for all of them: it does not SIGINT.
    """
    before = signal.getsignal(signal.SIGINT)

    def pass_on(number: int, frame: object) -> None:
        del number, frame
        signal.signal(signal.SIGINT, before)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGINT, pass_on)
