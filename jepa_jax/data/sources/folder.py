"""A folder of image files, with or without a sub-folder for each class."""

import logging
import os
import pathlib
import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import Literal

import numpy as np

from jepa_jax.config import DataConfig
from jepa_jax.data.decode import BadImageError, Pixels, bits_of, read_header, read_whole
from jepa_jax.data.sources.source import Source, encoded_source, names_digest
from jepa_jax.errors import UserError

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
_DEEPER = "images in sub-folders of sub-folders"
_LOOKED_AT = 32  # files whose headers tell of how many channels and bits the images are


def open_folder(data: DataConfig, split: Literal["train", "test"]) -> Source:
    """`path/split/<class>/<image>`, or `path/split/<image>` without labels.

    Classes are numbered by their names in the training images' folder, for both splits.

    Raises:
      UserError: there is no such folder, or no image in it; images lie beside folders of images; or
        a class of the test images is not among those of the training images.
    """
    name = data.train_split if split == "train" else data.test_split
    field = f"config.data.path = {data.path!r}, {split}_split = {name!r}"
    if data.path is None:
        raise UserError("config.data.path = None: must be set, to the folder of the images")
    base = pathlib.Path(data.path).expanduser()
    root = base / (name or "")
    if not root.is_dir():
        raise UserError(f"{field}: there is no folder {root}")
    if not os.access(root, os.R_OK | os.X_OK):
        raise UserError(f"{field}: no permission to read the folder {root}")
    files, left_out, of_classes = scan_classes(root, field)
    labels, class_names = None, tuple(of_classes)
    if of_classes:
        if split == "test" and data.train_split != data.test_split:
            class_names = _training_classes(base / (data.train_split or ""), class_names, field)
        number = {name: i for i, name in enumerate(class_names)}
        files = [file for of_class in of_classes.values() for file in of_class]
        counts = [len(of_class) for of_class in of_classes.values()]
        labels = np.repeat([number[name] for name in of_classes], counts)
    if not files:
        deeper = f", but {left_out[_DEEPER]} further down" if left_out[_DEEPER] else ""
        raise UserError(
            f"{field}: no images in {root} or its sub-folders{deeper}; "
            f"they are known by their endings: {', '.join(IMAGE_SUFFIXES)}"
        )

    def name_of(i: int) -> bytes:
        return os.fsencode(os.path.relpath(files[i], root))

    return encoded_source(
        lambda i: _read(files[i]),
        num_examples=len(files),
        pixels=pixels_of(data, files),
        labels=labels,
        class_names=class_names,
        describe=lambda i: printable(files[i]),
        digest=names_digest(map(name_of, range(len(files)))),
        left_out=left_out,
        name=name_of,
    )


def scan_classes(
    root: pathlib.Path, field: str
) -> tuple[list[str], Counter[str], dict[str, list[str]]]:
    """Images in a folder itself; why -> how many files are left out; class -> images.

    Raises:
      UserError: there are images in the folder itself, and in sub-folders; or two of these have
        the same name.
    """
    files, left_out = _scan(root)
    of_classes = {}
    for entry in sorted(os.scandir(root), key=lambda entry: os.fsencode(entry.name)):
        if _holds(entry.is_dir) and not _is_hidden(entry.name):
            of_class, others = _scan(pathlib.Path(entry.path))
            left_out += others
            left_out[_DEEPER] += _images_deeper(entry.path)
            name = unicodedata.normalize("NFC", entry.name)  # macOS may write another form
            if name in of_classes and of_class:
                raise UserError(
                    f"{field}: two folders in {root} are called {printable(name)}, written with "
                    "different code points (Unicode's forms NFC and NFD); join them"
                )
            if of_class:
                of_classes[name] = of_class
            else:
                left_out["in sub-folders that have no images"] += 1
    if files and of_classes:
        raise UserError(
            f"{field}: {len(files)} images lie in {root} itself, beside "
            f"{sum(map(len, of_classes.values()))} in its sub-folders {', '.join(of_classes)}; "
            "move the ones or the others elsewhere"
        )
    return files, +left_out, of_classes


def _images_deeper(folder: str) -> int:
    """Images in the folders of a class's folder; links to folders are not followed."""
    return sum(
        name.lower().endswith(IMAGE_SUFFIXES) and not _is_hidden(name)
        for root, _, names in os.walk(folder)
        if root != folder and not any(map(_is_hidden, os.path.relpath(root, folder).split(os.sep)))
        for name in names
    )


def _training_classes(root: pathlib.Path, of_test: tuple[str, ...], field: str) -> tuple[str, ...]:
    """The classes of the training images, where there are such; else those of the test images."""
    if not root.is_dir():
        return of_test
    of_train = tuple(scan_classes(root, field)[2])
    if not of_train:
        return of_test
    unknown = [name for name in of_test if name not in of_train]
    if unknown:
        raise UserError(
            f"{field}: the classes {', '.join(map(printable, unknown))} are not among those of the "
            f"training images in {root}: {', '.join(map(printable, of_train))}"
        )
    missing = [name for name in of_train if name not in of_test]
    if missing:
        log.warning("warning: no test images of the classes %s", ", ".join(map(printable, missing)))
    return of_train


def pixels_of(data: DataConfig, files: list[str]) -> Pixels:
    """How the images are read: as configured, else as some of them are.

    Of 16 bits if all that are looked at are; gray, if no number of channels is configured, if all
    that are looked at are.
    """
    bits, bands, highest = set(), set(), 0
    for i in np.unique(np.linspace(0, len(files) - 1, _LOOKED_AT).astype(int)):
        try:
            encoded = _read(files[i])
            header = read_header(encoded)
            if bits_of(header) == 16:
                whole = read_whole(encoded, Pixels(1, np.dtype(np.uint16)))
                highest = max(highest, int(whole.max()))
        except (BadImageError, OSError):
            continue  # told when it is its turn
        bits.add(bits_of(header))
        bands.add(header.image.mode in ("1", "L", "LA", "I;16"))
    dtype = np.dtype(np.uint16 if bits == {16} else np.uint8)
    if dtype == np.uint16 and highest < 2**12:
        log.warning(
            "warning: images have 16 bits, but no pixel of those looked at is above %d: 12 bits "
            "or less, stored in 16? config.data.mean = None and std = None make up for that",
            highest,
        )
    channels = data.channels or (1 if bands == {True} else 3)
    return Pixels(channels, dtype, data.interpolation, data.reduced_decoding)


def _scan(folder: pathlib.Path) -> tuple[list[str], Counter[str]]:
    """The images in a folder, and how many other files of which ending."""
    images, others = [], Counter[str]()
    for entry in os.scandir(folder):
        if _is_hidden(entry.name):
            others["hidden"] += 1
        elif not _holds(entry.is_file):
            continue
        elif entry.name.lower().endswith(IMAGE_SUFFIXES):
            images.append(entry.path)
        else:
            others[f"ending {pathlib.Path(entry.name).suffix.lower() or 'missing'}"] += 1
    return sorted(images, key=os.fsencode), others


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _holds(test: Callable[[], bool]) -> bool:
    """A `DirEntry.is_file` or `is_dir`; not, of a symbolic link that leads to itself."""
    try:
        return test()
    except OSError:
        return False


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def printable(name: str) -> str:
    """A file's name as text in one line, whatever its bytes are."""
    return os.fsencode(name).decode(errors="backslashreplace").replace("\n", "\\n")
