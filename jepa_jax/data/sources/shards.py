"""Images packed into a few large files, which `python -m jepa_jax.data pack` writes.

A split's folder holds

    00000-of-00008.array_record ...  the images' files as they were, one a record
    labels.npy                       int32 [count], where there are labels
    names.txt                        the images' names in one line each, printable
    manifest.json                    what the folder must hold: see `Manifest`
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import threading
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from jepa_jax.config import DataConfig
from jepa_jax.data.decode import BadImageError, Pixels
from jepa_jax.data.sources.source import Source, encoded_source
from jepa_jax.errors import UserError

FORMAT = 1
MANIFEST, LABELS, NAMES = "manifest.json", "labels.npy", "names.txt"
_ENDING = ".array_record"
# No reading ahead, and no thread of its own: a record is read by whoever wants it.
_READER = {
    "options": "readahead_buffer_size:0,max_parallelism:0",
    "file_reader_buffer_size": 32768,
}
_OTHER_FILES = 512  # that a process may have open, beside the shards


@dataclasses.dataclass(frozen=True)
class StoredFile:
    """A file of a split's folder: its name, of how many images it tells, its size and SHA-256."""

    name: str
    count: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a split's folder must hold.

    Attributes:
      count: images.
      class_names: of the data set; the same for all its splits.
      channels, dtype: of the pixels, if the configuration does not say how many channels.
      names_digest: `Source.digest`; that of the source if no image is left out.
      came_from: kind, path, split, digest and count of the source.
      images_per_shard: of the source; some of them may be left out.
      left_out: bad images of the source: [name, why].
      shards: in their order.
      files: those beside the shards.
    """

    count: int
    class_names: tuple[str, ...]
    channels: int
    dtype: str
    names_digest: str
    came_from: dict[str, Any]
    images_per_shard: int
    left_out: tuple[tuple[str, str], ...]
    shards: tuple[StoredFile, ...]
    files: tuple[StoredFile, ...]

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT} | dataclasses.asdict(self), indent=1) + "\n"


def shard_name(number: int, of: int) -> str:
    return f"{number:05d}-of-{of:05d}{_ENDING}"


def open_shards(data: DataConfig, split: Literal["train", "test"]) -> Source:
    """`path/split/`, as `jepa_jax.data pack` leaves it.

    Raises:
      UserError: there is no such folder; a file is missing, of another size, or one too many; or
        the splits have other classes. Contents are not compared with their checksums, which
        `jepa_jax.data check` does.
    """
    name = data.train_split if split == "train" else data.test_split
    field = f"config.data.path = {data.path!r}, {split}_split = {name!r}"
    if not data.path:
        raise UserError("config.data.path = None: must be set, to the folder of the shards")
    base = pathlib.Path(data.path).expanduser()
    root = base / (name or "")
    manifest = read_manifest(root, field)
    if split == "test" and data.train_split != data.test_split:
        _check_classes(base / (data.train_split or ""), manifest, field)
    _allow_open_files(len(manifest.shards), field)
    records = _Records(root, manifest.shards)
    names = functools.cache(lambda: _names(root))  # read for messages alone

    def describe(i: int) -> str:
        return f"{names()(i).decode()} in {root / records.find(i)[0].name}"

    return encoded_source(
        records.read,
        num_examples=manifest.count,
        pixels=Pixels(
            data.channels or manifest.channels,
            np.dtype(manifest.dtype),
            data.interpolation,
            data.reduced_decoding,
        ),
        labels=_labels(root, manifest, field),
        class_names=manifest.class_names,
        describe=describe,
        digest=manifest.names_digest,
        name=lambda i: names()(i),
    )


def read_manifest(root: pathlib.Path, field: str) -> Manifest:
    """The manifest, after a look at whether the folder holds what it says.

    Raises:
      UserError: as `open_shards`.
    """
    try:
        found = json.loads((root / MANIFEST).read_text())
    except FileNotFoundError as error:
        raise UserError(
            f"{field}: there is no {root / MANIFEST}; write it with python -m jepa_jax.data pack, "
            "or if that was interrupted, run it again"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{field}: {root / MANIFEST} can't be read: {error}") from error
    try:
        if found.pop("format") != FORMAT:
            raise UserError(f"{field}: {root / MANIFEST} is of another format than {FORMAT}")
        for key in ("shards", "files"):
            found[key] = tuple(StoredFile(**one) for one in found[key])
        found["class_names"] = tuple(found["class_names"])
        found["left_out"] = tuple((name, why) for name, why in found["left_out"])
        manifest = Manifest(**found)
        counts = sum(shard.count for shard in manifest.shards)
        names = {file.name for file in (*manifest.shards, *manifest.files)}
        number = len(manifest.shards)
        whole = (
            {shard_name(k, number) for k in range(number)} <= names <= _possible_names(number)
            and counts == manifest.count > 0
            and manifest.dtype in ("uint8", "uint16")
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{field}: {root / MANIFEST} is damaged: {error!r}") from error
    if not whole:
        raise UserError(f"{field}: {root / MANIFEST} is damaged: it contradicts itself")
    _check_files(root, manifest, field)
    return manifest


def _possible_names(number: int) -> set[str]:
    return {LABELS, NAMES, *(shard_name(k, number) for k in range(number))}


def _check_files(root: pathlib.Path, manifest: Manifest, field: str) -> None:
    try:
        there = {entry.name: entry.stat().st_size for entry in os.scandir(root)}
    except OSError as error:
        raise UserError(f"{field}: {root} can't be read: {error}") from error
    for file in (*manifest.shards, *manifest.files):
        if file.name not in there:
            raise UserError(f"{field}: {root / file.name} is missing")
        if there[file.name] != file.bytes:
            raise UserError(
                f"{field}: {root / file.name} has {there[file.name]:,} bytes; must have "
                f"{file.bytes:,}: copy it again"
            )
    known = {shard.name for shard in manifest.shards}
    extra = sorted(
        name for name in there if name.endswith(_ENDING) and name[0] != "." and name not in known
    )
    if extra:
        raise UserError(
            f"{field}: {root / extra[0]} is none of the {len(known)} shards in {MANIFEST}; "
            "remove it, or pack again"
        )


def _check_classes(of_train: pathlib.Path, manifest: Manifest, field: str) -> None:
    if not (of_train / MANIFEST).exists():
        return
    classes = read_manifest(of_train, field).class_names
    if classes != manifest.class_names:
        raise UserError(
            f"{field}: has {len(manifest.class_names)} classes, which are not the {len(classes)} "
            f"of the training images in {of_train}; pack both splits from one source"
        )


def _labels(root: pathlib.Path, manifest: Manifest, field: str) -> np.ndarray | None:
    if not any(file.name == LABELS for file in manifest.files):
        return None
    try:
        labels = np.load(root / LABELS, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{field}: {root / LABELS} can't be read: {error}") from error
    if labels.shape != (manifest.count,) or labels.dtype != np.int32:
        raise UserError(
            f"{field}: {root / LABELS} holds {labels.dtype} {list(labels.shape)}; must be int32 "
            f"[{manifest.count}]"
        )
    return labels.astype(np.int64)


def _names(root: pathlib.Path) -> Callable[[int], bytes]:
    """Number -> a line of the names; they stay on the disk."""
    lines = np.memmap(root / NAMES, np.uint8, "r")
    ends = np.flatnonzero(lines == ord("\n"))

    def name(i: int) -> bytes:
        return lines[ends[i - 1] + 1 if i else 0 : ends[i]].tobytes()

    return name


class _Records:
    """Random access to the records of all shards; from several threads."""

    def __init__(self, root: pathlib.Path, shards: tuple[StoredFile, ...]):
        self._root, self._shards = root, shards
        self._ends = np.cumsum([shard.count for shard in shards])
        self._readers: list[Any] = [None] * len(shards)
        self._lock = threading.Lock()

    def find(self, i: int) -> tuple[StoredFile, int]:
        """The shard of an image, and its place there."""
        shard, place = self._place(i)
        return self._shards[shard], place

    def read(self, i: int) -> bytes:
        shard, place = self._place(i)
        try:
            return self._reader(shard).read([place])[0]
        except (RuntimeError, IndexError) as error:  # as ArrayRecord has no errors of its own
            raise BadImageError(f"damaged record: {error}") from error

    def _place(self, i: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, i, side="right"))
        return shard, i - (int(self._ends[shard - 1]) if shard else 0)

    def _reader(self, shard: int) -> Any:
        with self._lock:
            if self._readers[shard] is None:
                from array_record.python.array_record_module import ArrayRecordReader

                one = self._shards[shard]
                reader = ArrayRecordReader(str(self._root / one.name), **_READER)
                found = reader.num_records()  # 0 of a file that can't be read
                if found != one.count:
                    raise BadImageError(f"the shard has {found} records; must have {one.count}")
                self._readers[shard] = reader
            return self._readers[shard]


def _allow_open_files(shards: int, field: str) -> None:
    """Each shard stays open; many systems allow 1,024 files at first, and more if asked."""
    with contextlib.suppress(ImportError):  # Windows has no such limit to set
        import resource

        now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = shards + _OTHER_FILES
        if now == resource.RLIM_INFINITY or wanted <= now:
            return
        if most != resource.RLIM_INFINITY and wanted > most:
            raise UserError(
                f"{field}: has {shards} shards, and this process may open only {most} files; "
                "raise that (ulimit -Hn), or pack with more --images-per-shard"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
