"""NumPy files, `train.npy` and so on; of large ones, each image is read when it is needed."""

import pathlib
import zipfile
from typing import Literal

import numpy as np

from jepa_jax.config import DataConfig
from jepa_jax.data.sources.source import Source, array_source
from jepa_jax.data.sources.tfds import to_integers
from jepa_jax.errors import UserError

_IN_MEMORY_BYTES = 1 << 30  # a split up to here is held, and whole batches are cut at once


def open_numpy(data: DataConfig, split: Literal["train", "test"]) -> Source:
    """`path/<split>.npy` and `path/<split>_labels.npy`, or an .npz file that holds both.

    Images are uint8 or uint16 [n, H, W] or [n, H, W, C], or floats of 0..1, which become uint16;
    labels, which may be missing, are whole numbers [n] or [n, 1], of several labels bool [n, K], or
    fractions [n, K]. In an .npz file they are called
    `<split>_images` and `<split>_labels`. Classes are called as their labels.

    Raises:
      UserError: there are no such arrays, or they are of another kind; or the labels of the
        test images are others than those of the training images.
    """
    if not data.path:
        raise UserError(
            "config.data.path = None: must be set, to a folder of .npy files, or an .npz file"
        )
    path = pathlib.Path(data.path).expanduser()
    name = data.train_split if split == "train" else data.test_split
    if not name or "/" in name:
        raise UserError(f"config.data.{split}_split = {name!r}: must be a name, for example train")
    images, kind = _images(path, name)
    labels = _labels(path, name, len(images))
    classes = labels
    if split == "test" and data.train_split and data.train_split != name and labels is not None:
        classes = _labels(path, data.train_split, None)
        classes = labels if classes is None else classes
        if (labels.dtype, labels.shape[1:]) != (classes.dtype, classes.shape[1:]):
            raise UserError(
                f"config.data.path = {data.path!r}: labels of {name} are {labels.dtype} "
                f"{list(labels.shape)}, and those of {data.train_split} {classes.dtype} "
                f"{list(classes.shape)}; must be alike"
            )
        unknown = np.setdiff1d(labels, classes)
        if labels.ndim == 1 and len(unknown):
            raise UserError(
                f"config.data.path = {data.path!r}: labels {', '.join(map(str, unknown[:5]))} of "
                f"{name} are not among those of {data.train_split}"
            )
    held = images.nbytes <= _IN_MEMORY_BYTES
    if held:
        images = to_integers(np.asarray(images), kind)
    elif images.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{kind}: above {_IN_MEMORY_BYTES >> 20:,} MiB must be uint8 or uint16")
    return array_source(
        images if images.ndim == 4 else images[..., None],
        labels,
        _names(classes),
        data.image_size,
        channels=data.channels,
        interpolation=data.interpolation,
        held=held,
    )


def _images(path: pathlib.Path, name: str) -> tuple[np.ndarray, str]:
    """The images of a split, not yet read if they lie in a file of their own; what they are."""
    images = load_array(path, name, "images")
    if images is None:
        where = path / f"{name}.npy" if path.suffix != ".npz" else f"{name}_images in {path}"
        raise UserError(f"config.data.path = '{path}': there is no {where}")
    kind = f"config.data.path = '{path}': {name} holds {images.dtype} {list(images.shape)}"
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise UserError(f"{kind}; images must be [n, H, W] or [n, H, W, C]")
    if images.ndim == 4 and images.shape[1] in (1, 3, 4) and images.shape[3] > 4:
        raise UserError(f"{kind}, which looks like [n, C, H, W]; images must be [n, H, W, C]")
    return images, kind


def _labels(path: pathlib.Path, name: str, count: int | None) -> np.ndarray | None:
    """int64 [count], bool [count, K] or float32 [count, K], if there are any."""
    labels = load_array(path, name, "labels")
    if labels is None:
        return None
    kind = f"config.data.path = '{path}': {name}_labels holds {labels.dtype} {list(labels.shape)}"
    of_many = labels.ndim == 2 and labels.dtype.kind in "bf" and labels.shape[1] > 0
    if labels.ndim == 2 and labels.shape[1] == 1 and not of_many:
        labels = labels[:, 0]
    if not of_many and (labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer)):
        raise UserError(
            f"{kind}; labels must be whole numbers, one for each image, or bool or fractions [n, K]"
        )
    if count is not None and len(labels) != count:
        raise UserError(f"{kind}, and there are {count} images; there must be a label for each")
    if of_many:
        return np.asarray(labels).astype(bool if labels.dtype == bool else np.float32)
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) > 10**6):
        raise UserError(f"{kind} of {labels.min()} to {labels.max()}; must be within 0..1,000,000")
    return np.asarray(labels).astype(np.int64)


def _names(labels: np.ndarray | None) -> tuple[str, ...]:
    """Classes are called as their labels, several labels as their columns."""
    if labels is None or labels.dtype == np.float32:
        return ()
    count = int(labels.max()) + 1 if labels.ndim == 1 else labels.shape[1]
    return tuple(str(label) for label in range(count))


def load_array(path: pathlib.Path, name: str, what: str) -> np.ndarray | None:
    """An array, memory-mapped if it is a file of its own; None if it does not exist.

    Args:
      what: "images", "labels", or what else there is of each image.

    Raises:
      UserError: it can't be read.
    """
    try:
        if path.suffix == ".npz":
            member = f"{name}_{what}.npy"
            with zipfile.ZipFile(path) as archive:
                if member not in archive.namelist():
                    return None
                if archive.getinfo(member).file_size > _IN_MEMORY_BYTES + 1024:
                    raise UserError(
                        f"config.data.path = '{path}': {member} is too large to be held; save it "
                        f"with numpy.save as {name}.npy in a folder, and give that"
                    )
                with archive.open(member) as stream:
                    return np.lib.format.read_array(stream, allow_pickle=False)
        file = path / (f"{name}.npy" if what == "images" else f"{name}_{what}.npy")
        if path.is_dir() and not file.is_file():
            return None
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, UserError):
            raise
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"config.data.path = '{path}': {name} can't be read: {why}") from error
    if not isinstance(array, np.ndarray):  # an .npz file of that name
        raise UserError(f"config.data.path = '{path}': {file.name} is not one array")
    return array
