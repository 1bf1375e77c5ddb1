"""What a checkpoint's files must be: `manifest.json` in its folder, with sizes and SHA-256.

It is written last, once Orbax has given the folder its final name. So a checkpoint without one was
not completely saved; but up to format 2 there were none, and such a checkpoint is unverified.
"""

import concurrent.futures
import contextlib
import errno
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Collection
from typing import Any, Literal, NamedTuple, TypeVar

from jepa_jax.config.formats import FIRST_WITH_MANIFEST

MANIFEST = "manifest.json"
# Seconds to wait before a file that could not be read is tried again.
RETRY_AFTER = (0.1, 0.4, 1.0)
_FOR_GOOD = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP}
_THREADS = min(8, os.cpu_count() or 1)  # hashing and reading release the interpreter's lock

T = TypeVar("T")


class Fault(NamedTuple):
    """What is wrong with a checkpoint.

    Attributes:
      kind: "damaged": its bytes are not those that were written; "incomplete": it was not saved to
        the end; "unreadable": the disk or the network failed, which tells nothing of the bytes.
      file: below the checkpoint's folder.
    """

    kind: Literal["damaged", "incomplete", "unreadable"]
    file: str
    why: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.file} {self.why}"


def write_manifest(folder: pathlib.Path) -> None:
    """Lists all files of a checkpoint, each with its digest; the list appears whole or not at all.

    Raises:
      OSError: a file can't be read, or the list not be written; then there is none.
    """
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path != folder / MANIFEST
    )
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        digests = list(pool.map(lambda name: _digest(folder / name), names))
    files = {
        name: {"bytes": size, "sha256": digest}
        for name, (size, digest) in zip(names, digests, strict=True)
    }
    temporary = folder / f"{MANIFEST}.tmp"
    try:
        with temporary.open("w") as file:
            file.write(_text(files))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / MANIFEST)
        _sync_folder(folder)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def find_fault(
    folder: pathlib.Path, items: Collection[str] | None = None, *, digests: bool = True
) -> Fault | None:
    """The first thing that is wrong with a checkpoint's files; None: nothing that can be known.

    Args:
      items: look at the files of these alone; None: at all files.
      digests: compare SHA-256 too, not only names and sizes.
    """
    try:
        text = retried(lambda: (folder / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return _without_manifest(folder)
    except OSError as error:
        return Fault("unreadable", MANIFEST, _reason(error))
    files = _parse(text)
    if files is None:
        return Fault("damaged", MANIFEST, "is not as it was written")
    chosen = {
        name: expected
        for name, expected in files.items()
        if items is None or name.split("/")[0] in items
    }

    def check(name: str) -> Fault | None:
        return _check(folder, name, chosen[name], digests=digests)

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        faults = [fault for fault in pool.map(check, chosen) if fault is not None]
    # Damage is certain; what could not be read may be fine.
    return min(faults, key=lambda fault: fault.kind, default=None)


def is_unverified(folder: pathlib.Path) -> bool:
    """Whether it is of a format that had no manifests, so that nothing can be compared."""
    return not (folder / MANIFEST).exists() and _without_manifest(folder) is None


def retried(read: Callable[[], T]) -> T:
    """Reads again a few times where a disk or a network fails.

    Raises:
      OSError: as `read`, at its last attempt; a file that is missing, at the first.
    """
    for pause in RETRY_AFTER:
        try:
            return read()
        except OSError as error:
            if error.errno in _FOR_GOOD:
                raise
        time.sleep(pause)
    return read()


def _without_manifest(folder: pathlib.Path) -> Fault | None:
    """Whether a checkpoint should have a manifest: its configuration says of which format it is."""
    path = "config/metadata"
    try:
        saved = json.loads(retried(lambda: (folder / path).read_bytes()))
        old = saved.get("format", 1) < FIRST_WITH_MANIFEST
    except (FileNotFoundError, NotADirectoryError):
        return Fault("incomplete", path, "is missing, and so is a manifest")
    except OSError as error:
        return Fault("unreadable", path, _reason(error))
    except (ValueError, TypeError, AttributeError):
        return Fault("damaged", path, "is not as it was written, and there is no manifest")
    if old:
        return None
    return Fault("incomplete", MANIFEST, "is missing: the save did not come to its end")


def _check(
    folder: pathlib.Path, name: str, expected: dict[str, Any], *, digests: bool
) -> Fault | None:
    path = folder / name
    try:
        size = retried(lambda: path.stat().st_size)
        if size != expected["bytes"]:
            return Fault("damaged", name, f"has {size} bytes, not {expected['bytes']}")
        if digests and retried(lambda: _digest(path))[1] != expected["sha256"]:
            return Fault("damaged", name, "has another SHA-256 than when it was saved")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return Fault("damaged", name, "is missing")
    except OSError as error:
        return Fault("unreadable", name, _reason(error))
    return None


def _digest(path: pathlib.Path) -> tuple[int, str]:
    """Size and SHA-256 of one file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def _text(files: dict[str, Any]) -> str:
    """The only text that a manifest of these files may have."""
    own = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return json.dumps({"files": files, "sha256_of_files": own}, indent=1, sort_keys=True) + "\n"


def _parse(text: bytes) -> dict[str, Any] | None:
    """The files of a manifest; None: a byte of it has changed."""
    try:
        files = json.loads(text)["files"]
        return files if _text(files).encode() == text else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _sync_folder(folder: pathlib.Path) -> None:
    """Makes a rename within a folder outlast a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: OSError) -> str:
    return f"can't be read ({error.strerror or error})"
