"""The end of one process of several: the others must not wait for it for ever.

What it says when it leaves, the others read from JAX's store of keys and values, and leave too. One
that is killed, or stalls, says nothing: JAX misses its sign of life, logs which process it was, and
aborts the others. (JAX would call a function of ours instead, but in 0.10 that ends in `bad_cast`.)
"""

import atexit
import contextlib
import os
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

import jax

from jepa_jax.errors import PreemptedError, UserError

_KEY = "jepa_jax/left"
_POLL_SECONDS = 1.0
# In what collectives raise when another process is gone: gloo on CPUs, NCCL on GPUs, XLA.
_BROKEN_CONNECTION = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "onnection reset")
_stop = threading.Event()


def seconds(name: str, default: int) -> int:
    """Whole seconds from an environment variable."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or int(text) == 0:
        raise UserError(f"{name}={text}: must be a number of seconds, at least 1")
    return int(text)


def watch() -> None:
    """Ends this process when another one leaves; goes once JAX has joined the others."""
    client = getattr(_jax_state(), "client", None)
    if client is None:
        return
    watching = threading.Thread(target=_watch, args=(client,), daemon=True)
    watching.start()

    def stop() -> None:
        _stop.set()
        watching.join()

    atexit.register(stop)


def leave(error: Exception) -> NoReturn:
    """Ends this process at once, with the error's line and exit code, and with it the others.

    An orderly end would wait for the other processes, and they wait for this one, in the middle of
    a step; or for a thread that hangs.
    """
    code = getattr(error, "exit_code", None)
    said = str(error).replace("\n", " ")
    if jax.process_count() == 1:
        print(f"error: {said}", file=sys.stderr, flush=True)
        os._exit(code or 1)
    if code is None:
        time.sleep(2 * _POLL_SECONDS)  # if another one left, its line is the better one
        traceback.print_exception(error)
        said = f"{type(error).__name__}: {said}; if another process was lost, see its log"
        if any(word in said for word in _BROKEN_CONNECTION):
            code = PreemptedError.exit_code  # to be run again
    _stop.set()
    line = f"process {jax.process_index()}: {said}"
    print(f"error: {line}", file=sys.stderr, flush=True)
    telling = threading.Thread(target=_tell, args=(f"{code or 1} {line}",), daemon=True)
    telling.start()
    telling.join(2 * _POLL_SECONDS)
    if jax.process_index() == 0:  # which holds what the others read
        time.sleep(2 * _POLL_SECONDS)
    os._exit(code or 1)


def _tell(said: str) -> None:
    client = getattr(_jax_state(), "client", None)
    if client is not None:
        with contextlib.suppress(Exception):  # the others are gone, then
            client.key_value_set(f"{_KEY}/{jax.process_index()}", said)


def _watch(client: Any) -> None:
    while not _stop.wait(_POLL_SECONDS):
        try:
            said = client.key_value_dir_get(_KEY)
        except Exception:  # process 0 is gone, and JAX aborts this one
            return
        if said and not _stop.is_set():
            code, line = said[0][1].split(" ", 1)
            print(f"error: {line}", file=sys.stderr, flush=True)
            os._exit(int(code))


def _jax_state() -> Any:
    """JAX's connection to the other processes; not public, so None where it has moved."""
    with contextlib.suppress(ImportError, AttributeError):
        from jax._src import distributed

        return distributed.global_state
    return None
