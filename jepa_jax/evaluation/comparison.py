"""A pretrained encoder beside its controls: its own random initialisation, and raw pixels."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from jepa_jax.config import DataConfig
from jepa_jax.data.pipeline import eval_batches
from jepa_jax.data.sources import open_source
from jepa_jax.errors import UserError
from jepa_jax.evaluation.features import make_pool, pooled_features, raw_pixels
from jepa_jax.evaluation.probes import LabelledFeatures
from jepa_jax.objectives.objective import Objective

Split = tuple[LabelledFeatures, LabelledFeatures]  # training, test


def features_of(
    data: DataConfig,
    objective: Objective,
    encoders: dict[str, Any],
    *,
    batch_size: int,
    pixels: bool,
) -> dict[str, Split]:
    """Average-pooled features of the training and test images, for each encoder.

    Args:
      encoders: name -> weights of an encoder.
      pixels: also give the images themselves, as "raw_pixels".

    Raises:
      UserError: the data have no labels, or too few of them.
    """
    pool = make_pool(objective)
    extractors: dict[str, Callable[..., np.ndarray]] = {
        name: lambda batches, weights=weights: pooled_features(pool, weights, batches)
        for name, weights in encoders.items()
    }
    if pixels:
        extractors["raw_pixels"] = raw_pixels
    splits = [_extract(data, split, extractors, batch_size) for split in ("train", "test")]
    return {name: (splits[0][name], splits[1][name]) for name in extractors}


def _extract(
    data: DataConfig,
    split: Literal["train", "test"],
    extractors: dict[str, Callable[..., np.ndarray]],
    batch_size: int,
) -> dict[str, LabelledFeatures]:
    source = open_source(data, split)
    if source.labels is None:
        raise UserError(
            f"config.data.path = {data.path!r}: the {split} images have no labels, which a probe "
            "needs; sort them into one folder per class"
        )
    index = np.arange(source.num_examples)
    return {
        name: LabelledFeatures(
            extract(eval_batches(data, source, index=index, batch_size=batch_size)), source.labels
        )
        for name, extract in extractors.items()
    }
