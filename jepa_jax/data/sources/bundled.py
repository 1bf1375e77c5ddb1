"""The images that come with the package."""

import pathlib
from typing import Literal

import numpy as np

import jepa_jax.data
from jepa_jax.config import DataConfig
from jepa_jax.data.clutter import clutter
from jepa_jax.data.sources.source import Source, array_source
from jepa_jax.errors import UserError

_NAMES: tuple[str, ...] = ("T-shirt", "trouser", "pullover", "dress", "coat")
_NAMES += ("sandal", "shirt", "sneaker", "bag", "ankle boot")


def open_fashion_mnist(data: DataConfig, split: Literal["train", "test"]) -> Source:
    """10,000 training and 2,000 test images of clothes (Xiao et al., 2017), centred or cluttered.

    Raises:
      UserError: there is no such split.
    """
    name = data.train_split if split == "train" else data.test_split
    if name not in ("train", "test"):
        raise UserError(f"config.data.{split}_split = {name!r}: must be train or test")
    package = pathlib.Path(jepa_jax.data.__file__).parent
    with np.load(package / "bundled" / "fashion_mnist" / "fashion_mnist.npz") as arrays:
        images, labels = arrays[f"{name}_images"], arrays[f"{name}_labels"].astype(np.int64)
    if data.source == "cluttered_fashion_mnist":
        images = clutter(images, seed=("train", "test").index(name))
    return array_source(
        images[..., None],
        labels,
        _NAMES,
        data.image_size,
        channels=data.channels,
        interpolation=data.interpolation,
    )
