"""Packs a split into shards (`sources/shards.py`): whole files, which a run that is killed keeps.

A shard gets its name when all of it is on the disk, and what is known of it is in `.packing/`. So a
file with that name is whole, whenever the process stopped; the next start goes on behind it. The
result depends on the source alone, not on the interruptions.
"""

import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tqdm

from jepa_jax.data.decode import BadImageError, Pixels, read_whole
from jepa_jax.data.reading import in_order
from jepa_jax.data.sources import Source
from jepa_jax.data.sources.folder import printable
from jepa_jax.data.sources.shards import (
    LABELS,
    MANIFEST,
    NAMES,
    Manifest,
    StoredFile,
    read_manifest,
    shard_name,
)
from jepa_jax.data.sources.source import names_digest
from jepa_jax.errors import BadDataError, StoppedRunError, UserError

log = logging.getLogger(__name__)

# One image a group, or else its neighbours are read with it; images are compressed already.
WRITER_OPTIONS = "group_size:1,uncompressed"
_NOTES, _BEGUN = ".packing", "begun.json"
_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota of the disk is used up"}
_GONE = (FileNotFoundError, PermissionError)  # all other errors of reading may be gone next time

# Of the images first..last-1: what was stored, and [number, why] of the bad ones.
_Done = tuple[StoredFile, list[list[Any]]]


def check_destination(destination: pathlib.Path) -> None:
    """Refuses a folder with anything in it but splits that are packed, or begun.

    Raises:
      UserError: it holds something else.
    """
    if destination.exists() and not destination.is_dir():
        raise UserError(f"{destination}: is no folder; choose another name")
    for entry in sorted(destination.iterdir()) if destination.is_dir() else []:
        ours = entry.is_dir() and (
            (entry / MANIFEST).exists() or (entry / _NOTES).exists() or not any(entry.iterdir())
        )
        if not ours and not entry.name.startswith("."):
            raise UserError(f"{entry}: is no packed images; choose an empty folder, or a new one")


def pack(
    source: Source, root: pathlib.Path, *, came_from: dict[str, Any], images_per_shard: int
) -> Manifest:
    """Packs a split, or what is missing of it.

    Bad images are left out, and are named.

    Args:
      root: the split's folder.
      came_from: kind, path and split of the source: noted, and compared when going on.

    Raises:
      UserError: the folder holds something else, was begun otherwise, can't be written, or another
        process is packing into it.
      StoppedRunError: the disk is full, or the source fails; the same call goes on.
      BadDataError: all images are bad.
    """
    came_from = came_from | {"digest": source.digest, "count": source.num_examples}
    with _told_of_the_disk(root), _alone(root):
        if _start(root, {"came_from": came_from, "images_per_shard": images_per_shard}):
            done = _shards(source, root, images_per_shard)
            _finish(source, root, done, came_from=came_from, images_per_shard=images_per_shard)
        manifest = read_manifest(root, str(root))
        if (root / _NOTES).exists():
            shutil.rmtree(root / _NOTES)
    for name, why in manifest.left_out:
        log.warning("%s: %s; left out", name, why)
    if manifest.left_out:
        log.warning(
            "warning: %d of %d images of %s are bad and left out, so that a run that began on the "
            "source can't go on with the shards: to it they are other images",
            len(manifest.left_out),
            source.num_examples,
            root.name,
        )
    return manifest


def _start(root: pathlib.Path, begun: dict[str, Any]) -> bool:
    """Whether there is something left to do.

    Raises:
      UserError: the folder is not that of the same packing.
    """
    if (root / MANIFEST).exists():
        manifest = read_manifest(root, str(root))
        have = {"came_from": manifest.came_from, "images_per_shard": manifest.images_per_shard}
        _compare(root, have, begun)
        return False
    notes = root / _NOTES
    if (notes / _BEGUN).exists():
        _compare(root, json.loads((notes / _BEGUN).read_text()), begun)
        return True
    other = [entry for entry in root.iterdir() if entry != notes]
    if other:
        raise UserError(f"{root}: holds something else: {other[0].name}; choose an empty folder")
    notes.mkdir(exist_ok=True)
    _write(notes / _BEGUN, json.dumps(begun).encode())
    return True


def _compare(root: pathlib.Path, have: dict[str, Any], want: dict[str, Any]) -> None:
    flat = [
        one["came_from"] | {"images per shard": one["images_per_shard"]} for one in (have, want)
    ]
    for key in flat[1]:
        if flat[0].get(key) != flat[1][key]:
            raise UserError(
                f"{root}: was begun with {key} {flat[0].get(key)!r}, not {flat[1][key]!r}; give "
                "the same source and --images-per-shard, or another folder"
            )


def _shards(source: Source, root: pathlib.Path, images_per_shard: int) -> list[_Done]:
    """Writes those that are missing."""
    total, done = source.num_examples, []
    number = -(-total // images_per_shard)
    with tqdm.tqdm(total=total, unit="img", desc=f"packing {root.name}") as bar:
        for k in range(number):
            name, images = shard_name(k, number), range(k * images_per_shard, total)
            images = images[:images_per_shard]
            one = _noted(root, name) or _write_shard(source, root, name, images, bar.update)
            bar.update(images.stop - bar.n)
            done.append(one)
    return done


def _noted(root: pathlib.Path, name: str) -> _Done | None:
    """What an earlier start stored, if it came to its end."""
    path, note = root / name, root / _NOTES / f"{name}.json"
    if not path.exists() or not note.exists():
        return None
    stored, bad = json.loads(note.read_text())
    one = StoredFile(**stored)
    return (one, bad) if path.stat().st_size == one.bytes else None


def _write_shard(
    source: Source,
    root: pathlib.Path,
    name: str,
    images: range,
    progress: Callable[[int], object],
) -> _Done:
    pixels, bad = Pixels(source.channels, source.dtype), list[list[Any]]()
    read = source.read
    assert read is not None

    def look(i: int) -> tuple[bytes, str | None]:
        try:
            data = read(i)
            read_whole(data, pixels)
        except (BadImageError, *_GONE) as error:
            return b"", str(error)
        except OSError as error:
            raise StoppedRunError(
                f"{source.describe(i)}: can't be read now: {error}; run the same command again"
            ) from error
        return data, None

    path = root / _NOTES / name
    with _writer(path) as write:
        for i, (data, why) in zip(images, in_order(look, images), strict=True):
            if why is None:
                write(data)
            else:
                bad.append([i, why])
            progress(1)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    one = StoredFile(name, len(images) - len(bad), path.stat().st_size, sha256)
    _write(root / _NOTES / f"{name}.json", json.dumps([vars(one), bad]).encode())
    path.replace(root / name)
    return one, bad


@contextlib.contextmanager
def _writer(path: pathlib.Path) -> Iterator[Callable[[bytes], None]]:
    """Appends records to a file; its errors become OSErrors."""
    from array_record.python.array_record_module import ArrayRecordWriter

    def checked(call: Callable[..., None], *arguments: bytes) -> None:
        try:
            call(*arguments)
        except RuntimeError as error:  # the only kind that it raises
            number = next((n for n in _FULL if os.strerror(n) in str(error)), errno.EIO)
            raise OSError(number, str(error), str(path)) from error

    writer: Any = None

    def open_writer() -> None:
        nonlocal writer
        writer = ArrayRecordWriter(str(path), WRITER_OPTIONS)

    checked(open_writer)
    try:
        yield lambda data: checked(writer.write, data)
    except BaseException:
        with contextlib.suppress(RuntimeError):
            writer.close()
        raise
    checked(writer.close)


def _finish(
    source: Source,
    root: pathlib.Path,
    done: list[_Done],
    *,
    came_from: dict[str, Any],
    images_per_shard: int,
) -> None:
    """Writes what lies beside the shards, and last the manifest."""
    bad = {number: why for _, of_shard in done for number, why in of_shard}
    kept = np.setdiff1d(np.arange(source.num_examples), list(bad))
    if not len(kept):
        raise BadDataError(f"{root.name}: none of {source.num_examples} images can be read")

    def name(i: int) -> bytes:
        return source.name(i) if source.name else source.describe(i).encode()

    names = "".join(printable(os.fsdecode(name(int(i)))) + "\n" for i in kept).encode()
    files = [_side_file(root / NAMES, names, len(kept))]
    if source.labels is not None:
        labels = np.ascontiguousarray(source.labels[kept], np.int32)
        files.append(_side_file(root / LABELS, _npy(labels), len(kept)))
    manifest = Manifest(
        count=len(kept),
        class_names=source.class_names,
        channels=source.channels,
        dtype=source.dtype.name,
        names_digest=names_digest(name(int(i)) for i in kept) if bad else source.digest,
        came_from=came_from,
        images_per_shard=images_per_shard,
        left_out=tuple((printable(os.fsdecode(name(i))), why) for i, why in bad.items()),
        shards=tuple(one for one, _ in done),
        files=tuple(files),
    )
    _write(root / MANIFEST, manifest.to_json().encode())


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _side_file(path: pathlib.Path, data: bytes, count: int) -> StoredFile:
    _write(path, data)
    return StoredFile(path.name, count, len(data), hashlib.sha256(data).hexdigest())


def _write(path: pathlib.Path, data: bytes) -> None:
    """The whole of it or nothing."""
    notes = path.parent if path.parent.name == _NOTES else path.parent / _NOTES
    temporary = notes / f"{path.name}.part"
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextlib.contextmanager
def _alone(root: pathlib.Path) -> Iterator[None]:
    """Makes the folder, and keeps other processes out of it, where the system can."""
    import fcntl

    root.mkdir(parents=True, exist_ok=True)
    folder = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{root}: another process is packing into it") from error
        except OSError as error:  # some network disks have no locks
            log.warning("%s: can't be locked (%s): let no other process pack into it", root, error)
        yield
    finally:
        os.close(folder)


@contextlib.contextmanager
def _told_of_the_disk(root: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StoppedRunError(
                f"{root}: {_FULL[error.errno]}; make room, and run the same command again: it goes "
                "on where it stopped"
            ) from error
        raise UserError(f"{root}: can't be written: {error}") from error
