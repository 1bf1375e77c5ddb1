"""What a run was made on and with, in `run.json`: the machine and the versions of the packages."""

import datetime
import functools
import importlib.metadata
import json
import pathlib
import platform
from typing import Any

import jax

FILE = "run.json"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow")


def write_run_record(workdir: pathlib.Path, *, start_step: int) -> None:
    """Writes what is known at a start; that of an earlier start of the run is replaced."""
    devices = jax.devices()
    record = {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "start_step": start_step,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "processes": jax.process_count(),
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }
    (workdir / FILE).write_text(json.dumps(record, indent=1) + "\n")


def read_run_record(workdir: pathlib.Path) -> dict[str, Any] | None:
    """What the last start wrote; None: nothing that can be read."""
    try:
        record = json.loads((workdir / FILE).read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


@functools.cache
def _version(package: str) -> str | None:
    for name in (package, f"{package}-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
