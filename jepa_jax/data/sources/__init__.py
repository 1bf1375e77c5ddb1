"""Where images come from: bundled ones, folders, shards, arrays, TensorFlow Datasets, made."""

from typing import Literal

import numpy as np

from jepa_jax.config import DataConfig
from jepa_jax.data.sources.arrays import open_numpy
from jepa_jax.data.sources.bundled import open_fashion_mnist
from jepa_jax.data.sources.folder import open_folder
from jepa_jax.data.sources.shards import open_shards
from jepa_jax.data.sources.source import Source, array_source, encoded_source
from jepa_jax.data.sources.subset import restricted, stratified, subset_index, take_subset
from jepa_jax.data.sources.synthetic import open_synthetic
from jepa_jax.data.sources.tfds import open_tfds
from jepa_jax.errors import UserError

__all__ = [
    "Source",
    "array_source",
    "encoded_source",
    "open_source",
    "restricted",
    "stratified",
    "subset_index",
]

_OPEN = {
    "fashion_mnist": open_fashion_mnist,
    "cluttered_fashion_mnist": open_fashion_mnist,
    "folder": open_folder,
    "shards": open_shards,
    "numpy": open_numpy,
    "tfds": open_tfds,
    "synthetic": open_synthetic,
}


def open_source(data: DataConfig, split: Literal["train", "test"]) -> Source:
    """Opens one split of the configured data; of the training split, the configured part.

    Raises:
      UserError: there is no such data, it can't be read, or its labels are no finite numbers.
    """
    if data.label is not None and data.source != "tfds":
        raise UserError(
            f"config.data.label = {data.label!r}: only of the source tfds, not of {data.source}; "
            "must be None"
        )
    source = _OPEN[data.source](data, split)
    if source.labels is not None and not np.isfinite(source.labels).all():
        bad = int(np.flatnonzero(~np.isfinite(source.labels).all(axis=1))[0])
        raise UserError(
            f"config.data.path = {data.path!r}: the label of {source.describe(bad)} is "
            f"{source.labels[bad].tolist()}; must be finite numbers"
        )
    return take_subset(data, source) if split == "train" else source
