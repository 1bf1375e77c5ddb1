"""A disk that fails while a run writes to it: one line, and the exit code of a stopped run."""

import contextlib
import errno
import logging
import os
import pathlib
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from typing import Any

from jepa_jax.errors import PreemptedError, StoppedRunError, UserError
from jepa_jax.training.manifest import find_fault
from jepa_jax.training.steps import latest_step, step_folders

# What the system says -> what is wrong, and what to do.
_FULL = {
    os.strerror(errno.ENOSPC): ("no space left in", "make room"),
    os.strerror(errno.EDQUOT): ("the quota of the disk is used up in", "make room"),
    os.strerror(errno.EFBIG): ("files may not be that large in", "make room"),
}
# These are also said of files that are only read, and so count only where the workdir is named.
_FAILED = {
    os.strerror(errno.EROFS): ("the file system is read-only at", "make it writable"),
    os.strerror(errno.EACCES): ("permission denied in", "make it writable"),
    os.strerror(errno.EPERM): ("not permitted in", "make it writable"),
    os.strerror(errno.EIO): ("input/output error in", "check the disk"),
    os.strerror(errno.ESTALE): ("the network's file system was lost at", "mount it again"),
}
_GONE = ("there is no folder checkpoints any more in", "put it back")
_PATIENCE = 2.0  # seconds
_UNFINISHED = re.compile(r"(\d+)\.orbax-checkpoint-tmp.*")


@contextlib.contextmanager
def disk_errors_in_one_line(workdir: pathlib.Path) -> Iterator[None]:
    """An error of the disk becomes a `StoppedRunError` that names the checkpoint.

    Orbax writes in the background, and reports a failure at length, from several threads, in its
    own log and from coroutines that it abandons: none of that is shown.

    Raises:
      StoppedRunError: what the run writes to `workdir` can't be written: the disk is full, fails,
        is read-only, or the folder is gone.
    """
    orbax_log, hook = logging.getLogger("absl"), sys.unraisablehook
    threads = set(threading.enumerate())

    def show(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    def is_of_another_reason(record: Any) -> bool:
        told = record.getMessage()
        if record.exc_info:
            told += "".join(traceback.format_exception(*record.exc_info))
        return _reason(told, workdir) is None

    def hear_again() -> None:
        sys.unraisablehook = hook
        orbax_log.removeFilter(is_of_another_reason)

    orbax_log.addFilter(is_of_another_reason)
    sys.unraisablehook = show
    try:
        yield
        hear_again()
    except (UserError, StoppedRunError, PreemptedError):
        hear_again()
        raise
    except Exception as error:
        told = "".join(traceback.format_exception(error))
        if isinstance(error, OSError):  # without a name: of a file that is open
            told += str(pathlib.Path(error.filename or workdir).absolute())
        reason = _reason(told, workdir)
        if reason is None:
            hear_again()
            raise
        _let_end(set(threading.enumerate()) - threads)
        # The process ends now; what is left of the failed save may complain until then, unheard.
        raise StoppedRunError(_advice(workdir, *reason)) from error


def _let_end(threads: Iterable[threading.Thread]) -> None:
    """Those of Orbax, which report the same error one after another, within two seconds."""
    end = time.monotonic() + _PATIENCE
    for thread in threads:
        with contextlib.suppress(Exception):  # it raises what went wrong in the thread
            thread.join(max(0.0, end - time.monotonic()))


def check_there(workdir: pathlib.Path) -> None:
    """Refuses to save to a folder that was removed or renamed, where Orbax would make a new one.

    Raises:
      StoppedRunError: it is gone.
    """
    if not (workdir / "checkpoints").is_dir():
        raise StoppedRunError(_advice(workdir, *_GONE))


def _reason(told: str, workdir: pathlib.Path) -> tuple[str, str] | None:
    """What is wrong with the disk, if an error tells of that: TensorStore only does so in words."""
    found = next((what for words, what in _FULL.items() if words in told), None)
    if found is None and str(workdir.absolute()) in told:
        if os.strerror(errno.ENOENT) in told and not (workdir / "checkpoints").is_dir():
            return _GONE
        found = next((what for words, what in _FAILED.items() if words in told), None)
    return found


def _advice(workdir: pathlib.Path, reason: str, remedy: str) -> str:
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    begun = [int(match[1]) for match in map(_UNFINISHED.fullmatch, names) if match]
    begun += [  # renamed, but without its manifest
        int(folder.name)
        for folder in step_folders(workdir)[:1]
        if find_fault(folder, (), digests=False) is not None
    ]
    what = f"save checkpoint {max(begun)}" if begun else "write"
    line = f"can't {what}: {reason} {workdir}; {remedy}, and run the same command again"
    if (reason, remedy) == _GONE:
        return line
    saved = latest_step(workdir)
    rest = "there is no earlier one" if saved is None else f"it goes on from checkpoint {saved}"
    return f"{line}: {rest}"
