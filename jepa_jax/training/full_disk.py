"""A disk that is full while a run writes to it: one line, and the exit code of a stopped run."""

import contextlib
import errno
import logging
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from jepa_jax.errors import StoppedRunError
from jepa_jax.training.manifest import find_fault
from jepa_jax.training.steps import latest_step, step_folders

_REASONS = {
    os.strerror(errno.ENOSPC): "no space left",
    os.strerror(errno.EDQUOT): "the quota of the disk is used up",
    os.strerror(errno.EFBIG): "files may not be that large there",
}
_UNFINISHED = re.compile(r"(\d+)\.orbax-checkpoint-tmp.*")


@contextlib.contextmanager
def full_disk_in_one_line(workdir: pathlib.Path) -> Iterator[None]:
    """An error that comes of a full disk becomes a `StoppedRunError` that names the checkpoint.

    Orbax writes in the background, and reports a failure at length, from several threads, in its
    own log and from coroutines that it abandons: none of that is shown.

    Raises:
      StoppedRunError: there is no space left for what the run writes to `workdir`.
    """
    orbax_log, hook = logging.getLogger("absl"), sys.unraisablehook

    def show(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    orbax_log.addFilter(_is_of_another_reason)
    sys.unraisablehook = show
    try:
        yield
    except Exception as error:
        reason = _reason("".join(traceback.format_exception(error)))
        if reason is None:
            raise
        raise StoppedRunError(_advice(workdir, reason)) from error
    finally:
        sys.unraisablehook = hook
        orbax_log.removeFilter(_is_of_another_reason)


def _is_of_another_reason(record: Any) -> bool:
    told = record.getMessage()
    if record.exc_info:
        told += "".join(traceback.format_exception(*record.exc_info))
    return _reason(told) is None


def _reason(told: str) -> str | None:
    """What is wrong with the disk, if an error tells of that: TensorStore only does so in words."""
    return next((short for long, short in _REASONS.items() if long in told), None)


def _advice(workdir: pathlib.Path, reason: str) -> str:
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    begun = [int(match[1]) for match in map(_UNFINISHED.fullmatch, names) if match]
    begun += [  # renamed, but without its manifest
        int(folder.name)
        for folder in step_folders(workdir)[:1]
        if find_fault(folder, (), digests=False) is not None
    ]
    what = f"save checkpoint {max(begun)}" if begun else "write"
    saved = latest_step(workdir)
    rest = "there is no earlier one" if saved is None else f"it goes on from checkpoint {saved}"
    return f"can't {what}: {reason} in {workdir}; make room, and run the same command again: {rest}"
