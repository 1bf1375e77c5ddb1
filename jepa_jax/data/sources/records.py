"""Random access to the records of prepared data sets: TFRecord files by an index, ArrayRecord."""

import dataclasses
import hashlib
import logging
import os
import pathlib
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import google_crc32c
import numpy as np
import tensorflow as tf
import tqdm

from jepa_jax.data.decode import BadImageError
from jepa_jax.errors import UserError

log = logging.getLogger(__name__)

_HEADER = struct.Struct("<QI")  # length, its masked CRC-32C; then the data, and theirs
_MASK_DELTA = 0xA282EAD8


@dataclasses.dataclass(frozen=True)
class Part:
    """Some of the records of one file; named as TFDS and ArrayRecord name it."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


def open_records(
    parts: Sequence[Part], label_of: Callable[[bytes], Any] | None, *, label: str = ""
) -> tuple[Callable[[int], bytes], np.ndarray | None]:
    """A function from a record's number, over all parts, to its bytes; and all labels.

    TFRecord files have no table of contents: they are read once, which is remembered in a file in
    the user's cache; ArrayRecord files are read only where there are labels.

    Args:
      label_of: the label in a record, a number or an array; None: there are none.
      label: its name, where records have several: what is remembered is of this one.

    Raises:
      UserError: a file is missing or cut.
    """
    if str(parts[0].filename).rsplit(".", 1)[-1].startswith("array_record"):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        records = ArrayRecordDataSource(list(parts))
        found = _remembered(parts, lambda: _labels(records, label_of), label) if label_of else {}
        return lambda i: records[i], found.get("labels")
    found = _remembered(parts, lambda: _index(parts, label_of), label)
    of_part, offsets = found["part"], found["offset"]
    names = [os.fspath(part.filename) for part in parts]

    def read(i: int) -> bytes:
        with _open(names[of_part[i]]) as file:
            file.seek(int(offsets[i]))
            return _next_record(file)

    return read, found.get("labels")


def _labels(records: Any, label_of: Callable[[bytes], Any]) -> dict[str, np.ndarray]:
    rows = tqdm.tqdm(range(len(records)), desc="labels, once", unit="img", disable=None)
    return {"labels": np.array([label_of(records[i]) for i in rows])}


def _index(parts: Sequence[Part], label_of: Callable[[bytes], Any] | None) -> dict[str, np.ndarray]:
    """Where each record begins; with labels, each is read."""
    of_part, offsets, labels = [], [], []
    total = sum(part.take for part in parts)
    with tqdm.tqdm(total=total, desc="index, once", unit="img", disable=None) as bar:
        for number, part in enumerate(parts):
            try:
                for offset, data in _walk(part, label_of is not None):
                    of_part.append(number)
                    offsets.append(offset)
                    if label_of is not None:
                        labels.append(label_of(data))
                    bar.update()
            except (BadImageError, tf.errors.OpError, OSError) as error:
                which = len(of_part) - sum(one.take for one in parts[:number]) + part.skip
                raise UserError(f"{part.filename}: record {which}: {error}") from error
    found: dict[str, np.ndarray] = {
        "part": np.array(of_part, np.int32),
        "offset": np.array(offsets, np.int64),
    }
    return found | ({"labels": np.array(labels)} if label_of is not None else {})


def _walk(part: Part, read: bool) -> Iterator[tuple[int, bytes]]:
    """(offset, data or nothing) of each record that a part takes."""
    with _open(os.fspath(part.filename)) as file:
        offset = 0
        for number in range(part.skip + part.take):
            if number >= part.skip and read:
                data = _next_record(file)
                length = len(data)
            else:
                data, length = b"", _length(file.read(_HEADER.size))
            if number >= part.skip:
                yield offset, data
            offset += _HEADER.size + length + 4
            file.seek(offset)
        file.seek(offset - 1)
        if len(file.read(1)) < 1:
            raise BadImageError("the file is cut there")


def _length(header: bytes) -> int:
    if len(header) < _HEADER.size:
        raise BadImageError("the file is cut there")
    length, checksum = _HEADER.unpack(header)
    if _masked(header[:8]) != checksum:
        raise BadImageError("its length does not match its checksum")
    return length


def _next_record(file: Any) -> bytes:
    length = _length(file.read(_HEADER.size))
    data, checksum = file.read(length), file.read(4)
    if len(data) < length or len(checksum) < 4:
        raise BadImageError("the file is cut there")
    if _masked(data) != int.from_bytes(checksum, "little"):
        raise BadImageError("does not match its checksum")
    return data


def _masked(data: bytes) -> int:
    """The checksum that TFRecord files keep."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def _open(name: str) -> Any:
    return tf.io.gfile.GFile(name, "rb") if "://" in name else open(name, "rb")


def _remembered(
    parts: Sequence[Part], make: Callable[[], dict[str, np.ndarray]], label: str
) -> dict[str, np.ndarray]:
    """The arrays of `make`, from a file where they were made before of the same files."""
    names = []
    for part in parts:
        try:
            stat = tf.io.gfile.stat(os.fspath(part.filename))
        except tf.errors.OpError as error:
            raise UserError(f"{part.filename}: can't be read: {error.message}") from error
        names.append(f"{part.filename} {part.skip} {part.take} {stat.length} {stat.mtime_nsec}")
    names += [label] if label else []
    key = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    path = pathlib.Path(root) / "jepa_jax" / "index" / f"{key}.npz"
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError):
        pass  # not there, or damaged
    found = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.stem}.{os.getpid()}.npz")
        np.savez(temporary, **found)  # type: ignore[arg-type]
        temporary.replace(path)
    except OSError as error:
        log.warning("the index can't be kept in %s, and is made anew each time: %s", path, error)
    return found
