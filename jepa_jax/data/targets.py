"""What each pixel is: maps of classes or of distances, cut out as the images are."""

import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from PIL import Image

from jepa_jax.config import DataConfig
from jepa_jax.data.crops import centre_boxes
from jepa_jax.data.sources import Source
from jepa_jax.data.sources.arrays import load_array
from jepa_jax.data.sources.tfds import tfds_maps
from jepa_jax.errors import UserError

IGNORED = 255  # of the classes: such a pixel does not count

Split = Literal["train", "test"]


def read_targets(
    data: DataConfig,
    split: Split,
    source: Source,
    target: str,
    kind: Literal["segmentation", "depth"],
    *,
    scale: float = 1.0,
) -> np.ndarray:
    """The maps of all images of a split, centre-cropped as they are, and resized by the nearest
    pixel.

    Args:
      source: the images, whose order the maps have.
      target: name of the maps, as `DenseConfig.target`.
      scale: depth: the stored numbers times this.

    Returns:
      uint8 [n, H, W] of classes, IGNORED where there is none; or float32 [n, H, W] of distances,
      0 where there is none: where the stored number is 0 or below, or not finite.

    Raises:
      UserError: there are no such maps, fewer or more than images, or they are of another kind.
    """
    field = f"config.target = {target!r}"
    if data.source not in _MAPS:
        raise UserError(f"{field}: of the sources {', '.join(_MAPS)}, not of {data.source}")
    if data.subset is not None:
        raise UserError(f"{field}: needs all images; config.data.subset must be None")
    maps = np.zeros(
        (source.num_examples, *data.image_size), np.uint8 if kind == "segmentation" else np.float32
    )
    i = -1
    for i, stored in enumerate(_MAPS[data.source](data, split, source, target)):
        if i == len(maps):
            break
        where = f"{field}: the map of {source.describe(i)}"
        if stored.ndim == 3 and stored.shape[2] == 1:
            stored = stored[..., 0]
        if stored.ndim != 2 or 0 in stored.shape:
            raise UserError(f"{where} is {list(stored.shape)}; must be [H, W]")
        found = _cut(stored, data)
        maps[i] = _classes(found, where) if kind == "segmentation" else _distances(found, scale)
    if i + 1 != len(maps):
        count = f"more than {len(maps)}" if i == len(maps) else i + 1
        raise UserError(f"{field}: {count} maps of {len(maps)} {split} images; must be one of each")
    return maps


def _cut(stored: np.ndarray, data: DataConfig) -> np.ndarray:
    """The same part as of the image, each pixel the nearest one: [h, w] -> [H, W]."""
    height, width = data.image_size
    ((top, left, h, w),) = centre_boxes(
        *np.array(stored.shape)[:, None], aspect_ratio=width / height, share=data.eval_crop
    )
    rows = top + np.floor((np.arange(height) + 0.5) * h / height).astype(int)
    columns = left + np.floor((np.arange(width) + 0.5) * w / width).astype(int)
    return stored[np.ix_(rows, columns)]


def _classes(found: np.ndarray, where: str) -> np.ndarray:
    if found.dtype.kind not in "iub":
        raise UserError(f"{where} is {found.dtype}; must be whole numbers, the classes")
    if found.dtype != np.uint8 and not 0 <= int(found.min()) <= int(found.max()) <= IGNORED:
        raise UserError(f"{where} has classes {found.min()} to {found.max()}; must be 0 to 255")
    return found


def _distances(found: np.ndarray, scale: float) -> np.ndarray:
    distances = found.astype(np.float32) * np.float32(scale)
    return np.where(np.isfinite(distances) & (distances > 0), distances, np.float32(0))


def _of_tfds(data: DataConfig, split: Split, source: Source, target: str) -> Iterator[np.ndarray]:
    del source
    return tfds_maps(data, split, target)


def _of_arrays(data: DataConfig, split: Split, source: Source, target: str) -> Iterator[np.ndarray]:
    del source
    name = str(data.train_split if split == "train" else data.test_split)
    found = load_array(pathlib.Path(str(data.path)).expanduser(), name, target)
    if found is None or found.ndim not in (3, 4):
        what = f"{found.dtype} {list(found.shape)}" if found is not None else "not there"
        raise UserError(
            f"config.target = {target!r}: the array {name}_{target} of {data.path} is {what}; must "
            "be [n, H, W]"
        )
    return iter(found)


def _of_files(data: DataConfig, split: Split, source: Source, target: str) -> Iterator[np.ndarray]:
    name = data.train_split if split == "train" else data.test_split
    root = pathlib.Path(str(data.path)).expanduser() / (f"{name}_{target}" if name else target)
    assert source.name is not None
    for i in range(source.num_examples):
        path = root / pathlib.Path(os.fsdecode(source.name(i))).with_suffix(".png")
        try:
            with Image.open(path, formats=("PNG",)) as image:
                array = np.asarray(image)
        except Exception as error:  # Pillow raises of many types
            raise UserError(
                f"config.target = {target!r}: the map {path} can't be read: "
                f"{str(error).splitlines()[0]}"
            ) from error
        yield array


_MAPS: dict[str, Callable[[DataConfig, Split, Source, str], Iterator[np.ndarray]]] = {
    "tfds": _of_tfds,
    "numpy": _of_arrays,
    "folder": _of_files,
}
