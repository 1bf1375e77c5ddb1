"""Reads every image of a data set once: what is bad, what is odd, what is there twice."""

import collections
import dataclasses
import hashlib
import os
import pathlib
from typing import NamedTuple

import numpy as np
import tqdm

from jepa_jax.data.decode import (
    BadImageError,
    Pixels,
    bits_of,
    read_header,
    read_whole,
)
from jepa_jax.data.reading import in_order
from jepa_jax.data.sources import Source
from jepa_jax.data.sources.folder import printable
from jepa_jax.data.sources.shards import read_manifest

MOST_ASPECT = 5
LEAST_SIDE = 32
MOST_PIXELS = 50_000_000  # half of what is read at all; 150 MB decoded
_ENDINGS = {
    "JPEG": (".jpg", ".jpeg"),
    "MPO": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
}
_SAMPLED = 128  # rows and columns of an image that its mean is taken of


class Look(NamedTuple):
    """What one image is.

    Attributes:
      problem: why it is bad; all else is empty then, but for the digest.
      digest: of the file's bytes.
      odd: what is unusual about the image by itself.
      bits: of a channel.
      mean, squares: of a sample of the pixels in 0..1 and of their squares, float64 [channels].
    """

    problem: str | None
    digest: bytes
    format: str = ""
    height: int = 0
    width: int = 0
    gray: bool = False
    bits: int = 8
    odd: tuple[str, ...] = ()
    mean: np.ndarray = np.zeros(0)
    squares: np.ndarray = np.zeros(0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitReport:
    """What was found in a split.

    Attributes:
      images: number of all, the bad ones too.
      bad: name -> why.
      odd: name -> all that is unusual.
      formats: number of images by format, channels and bits, as "JPEG, gray".
      height, width: min, median, max, of the good ones.
      mean, std: of each channel, pixels in 0..1; each image counts alike.
      per_class: images of each class; empty without classes.
    """

    images: int
    bad: dict[str, str]
    odd: dict[str, list[str]]
    formats: dict[str, int]
    height: tuple[int, int, int]
    width: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    per_class: dict[str, int]


def look_at(data: bytes, name: str | None, wanted: Pixels) -> Look:
    """Decodes an image.

    Args:
      name: of its file; None: it had none.
      wanted: what pixels `mean` and `squares` are of.
    """
    digest = hashlib.blake2b(data, digest_size=16).digest()
    try:
        header = read_header(data)
        pixels = read_whole(data, wanted)  # [h, w, C]
    except BadImageError as error:
        return Look(str(error), digest)
    height, width = pixels.shape[:2]
    odd = []
    if max(height, width) > MOST_ASPECT * min(height, width):
        odd.append(f"aspect ratio beyond {MOST_ASPECT}:1")
    if min(height, width) < LEAST_SIDE:
        odd.append(f"a side under {LEAST_SIDE} pixels")
    if height * width > MOST_PIXELS:
        odd.append(f"over {MOST_PIXELS // 10**6} million pixels")
    if header.orientation != 1:
        odd.append(f"turned by EXIF ({header.orientation})")
    kind = header.image.format or ""
    if name is not None and not name.lower().endswith(_ENDINGS.get(kind, ())):
        odd.append(f"ending {pathlib.PurePath(name).suffix or 'missing'}, contents {kind}")
    step = max(1, height // _SAMPLED), max(1, width // _SAMPLED)
    sample = pixels[:: step[0], :: step[1]].astype(np.float64) / np.iinfo(pixels.dtype).max
    return Look(
        None,
        digest,
        "JPEG" if kind == "MPO" else kind,
        height,
        width,
        header.image.mode in ("1", "L", "LA", "I;16"),
        bits_of(header),
        tuple(odd),
        sample.mean((0, 1)),
        (sample**2).mean((0, 1)),
    )


class Duplicates:
    """Which images have the same bytes, over several splits."""

    def __init__(self) -> None:
        self._digests: list[np.ndarray] = []
        self._sources: list[tuple[str, Source]] = []

    def add(self, split: str, source: Source, digests: np.ndarray) -> None:
        """Adds a split's images: uint64 [n, 2]."""
        self._digests.append(digests)
        self._sources.append((split, source))

    def find(self) -> list[list[tuple[str, str]]]:
        """Groups of equal images, as (split, name), in the order of their first ones."""
        digests = np.concatenate(self._digests)
        order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: equal ones stay in order
        same = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
        groups: list[list[int]] = []
        for k in np.flatnonzero(same):
            if groups and groups[-1][-1] == order[k]:
                groups[-1].append(int(order[k + 1]))
            else:
                groups.append([int(order[k]), int(order[k + 1])])
        return [[self._name(i) for i in group] for group in sorted(groups)]

    def _name(self, i: int) -> tuple[str, str]:
        for (split, source), digests in zip(self._sources, self._digests, strict=True):
            if i < len(digests):
                return split, name_of(source, i)
            i -= len(digests)
        raise IndexError(i)


def name_of(source: Source, i: int) -> str:
    """A short name for messages."""
    return printable(os.fsdecode(source.name(i))) if source.name else source.describe(i)


def check(split: str, source: Source, duplicates: Duplicates) -> SplitReport:
    """Reads all images of a split; also adds them to `duplicates`."""
    n, pixels, read = source.num_examples, Pixels(source.channels, source.dtype), source.read
    assert read is not None

    def look(i: int) -> Look:
        try:
            data = read(i)
        except (BadImageError, OSError) as error:
            return Look(str(error), b"")
        return look_at(data, name_of(source, i) if source.name else None, pixels)

    bad, odd = dict[int, str](), collections.defaultdict[int, list[str]](list)
    kinds = collections.Counter[str]()
    sides, gray, wide = np.zeros((n, 2), np.int32), np.zeros(n, bool), np.zeros(n, bool)
    digests, total = np.zeros((n, 2), np.uint64), np.zeros((2, source.channels))
    for i, found in enumerate(
        tqdm.tqdm(in_order(look, range(n)), total=n, unit="img", desc=f"checking {split}")
    ):
        # What can't be read at all equals nothing.
        unique = i.to_bytes(8, "little") + b"\xff" * 8
        digests[i] = np.frombuffer(found.digest or unique, np.uint64)
        if found.problem is not None:
            bad[i] = found.problem
            continue
        sides[i], gray[i], wide[i] = (found.height, found.width), found.gray, found.bits == 16
        kinds[_kind(found)] += 1
        total += found.mean, found.squares
        if found.odd:
            odd[i] += found.odd
    duplicates.add(split, source, digests)
    good = np.setdiff1d(np.arange(n), list(bad))
    for which, names in ((gray, ("gray", "colour")), (wide, ("16 bits", "8 bits"))):
        _unlike_most(good, which, names, odd)
    mean, squares = total / max(len(good), 1)
    labels, classes = source.classes, source.class_names
    return SplitReport(
        images=n,
        bad={name_of(source, i): why for i, why in bad.items()},
        odd={name_of(source, i): odd[i] for i in sorted(odd)},
        formats=dict(kinds.most_common()),
        height=_range(sides[good, 0]),
        width=_range(sides[good, 1]),
        mean=_rounded(mean),
        std=_rounded(np.sqrt(np.maximum(squares - mean**2, 0))),
        per_class={}
        if labels is None
        else dict(zip(classes, np.bincount(labels, minlength=len(classes)).tolist(), strict=False)),
    )


def _kind(found: Look) -> str:
    return found.format + ", gray" * found.gray + ", 16 bits" * (found.bits == 16)


def _unlike_most(
    good: np.ndarray, which: np.ndarray, names: tuple[str, str], odd: dict[int, list[str]]
) -> None:
    """Those images are odd that are of the rarer kind."""
    of_first = which[good].sum()
    rarer = of_first <= len(good) / 2
    few, most = names if rarer else names[::-1]
    for i in good[which[good] == rarer]:
        odd[int(i)].append(f"{few} among images of {most}")


def _range(values: np.ndarray) -> tuple[int, int, int]:
    if not len(values):
        return 0, 0, 0
    return int(values.min()), int(np.median(values)), int(values.max())


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in values)


def changed_files(root: pathlib.Path) -> list[str]:
    """Files of a split's shards whose contents do not match the manifest."""
    manifest = read_manifest(root, str(root))
    files = (*manifest.shards, *manifest.files)

    def differs(k: int) -> bool:
        with (root / files[k].name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() != files[k].sha256

    found = in_order(differs, range(len(files)))
    bar = tqdm.tqdm(found, total=len(files), unit="file", desc=f"checksums of {root.name}")
    return [file.name for file, differ in zip(files, bar, strict=True) if differ]
