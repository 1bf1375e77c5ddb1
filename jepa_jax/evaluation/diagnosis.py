"""The diagnostics of a frozen encoder on training images, and the file that keeps them by step."""

import dataclasses
import itertools
import json
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jepa_jax.batch.spec import BatchSpec, image_view
from jepa_jax.config import DataConfig
from jepa_jax.data.pipeline import eval_batches
from jepa_jax.data.sources import Source
from jepa_jax.data.stream import make_stream
from jepa_jax.errors import UserError
from jepa_jax.evaluation import spectrum
from jepa_jax.evaluation.features import Pool, pool_padded, pooled_features
from jepa_jax.evaluation.probes import LabelledFeatures, knn_accuracy
from jepa_jax.training.diagnostics import position_share
from jepa_jax.training.metrics import read_metrics

Encode = Callable[[Any, np.ndarray], Any]  # (weights, pixels [B, H, W, C]) -> tokens [B, N, D]

FILE = "diagnostics.jsonl"
_BATCH = 100
_VIEWS, _VIEWED = 10, 1000  # of each image, for LiDAR; of at most so many images
_NEIGHBORS = 10


@dataclasses.dataclass(frozen=True)
class Sample:
    """Training images by number, in a random order, to measure one checkpoint after the other."""

    data: DataConfig
    source: Source
    index: np.ndarray  # int64 [n]
    seed: int


def draw_sample(data: DataConfig, source: Source, *, number: int, seed: int) -> Sample:
    """Up to so many of a source's images.

    Raises:
      UserError: there are less than three.
    """
    if source.num_examples < 3:
        raise UserError(
            f"config.data.path = {data.path!r}: has {source.num_examples} training images; must be "
            "at least 3"
        )
    index = np.random.default_rng(seed).permutation(source.num_examples)[:number]
    return Sample(data, source, index, seed)


def diagnose(encode: Encode, weights: Any, sample: Sample) -> dict[str, Any]:
    """Diagnostics of an encoder: those of `spectrum`, "lidar", "position_share", "knn_accuracy".

    The share of positions is of the first 100 images' tokens. k-NN is between training images: a
    fifth of them are told by the others. What is not defined is None: k-NN without labels, for one.
    """
    encoder = jax.jit(encode)
    pool = jax.jit(lambda weights, images: encode(weights, images).mean(axis=1))
    data, source, index = sample.data, sample.source, sample.index
    size, bad = min(_BATCH, len(index)), list[int]()
    batches = eval_batches(data, source, index=index, batch_size=size, bad=bad)
    first = next(batches)
    features = pooled_features(pool, weights, itertools.chain([first], batches))
    good = ~np.isin(index, bad)
    features = features[good]  # [n, D]
    tokens = encoder(weights, first)[good[: len(first)]]  # [b, N, D]
    row = spectrum.describe(features)
    row |= {
        "lidar": spectrum.lidar(_views(pool, weights, sample)),
        "position_share": float(position_share(tokens)),
        "knn_accuracy": _knn(features, source, index[good]),
        "images": len(features),
    }
    return {name: _or_none(value) for name, value in row.items()}


def _views(pool: Pool, weights: Any, sample: Sample) -> np.ndarray:
    """Features [m, q, D] of q crops, as training draws them, of each of up to 1,000 images."""
    view = image_view("views", sample.data, number=_VIEWS)
    number = min(_VIEWED, len(sample.index))
    size = max(size for size in range(1, _BATCH // 5 + 1) if number % size == 0)
    stream = make_stream(
        BatchSpec((view,)), sample.data, sample.source, seed=sample.seed, batch_size=size
    )
    parts = []
    for batch in stream.batches(0, number // size, None):
        crops = batch["views"][~batch["replaced"]]  # [b, q, H, W, C]
        images = crops.reshape(-1, *crops.shape[2:])
        features = pool_padded(pool, weights, images, size * _VIEWS)
        parts.append(np.asarray(features).reshape(len(crops), _VIEWS, -1))
    return np.concatenate(parts)


def _knn(features: np.ndarray, source: Source, index: np.ndarray) -> float | None:
    if source.classes is None or len(np.unique(source.classes[index])) < 2:
        return None
    of, asked = source.classes[index], max(len(index) // 5, 1)
    known = LabelledFeatures(features[asked:], of[asked:])
    neighbors = min(_NEIGHBORS, len(index) - asked)
    return knn_accuracy(known, LabelledFeatures(features[:asked], of[:asked]), neighbors=neighbors)


def _or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_rows(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a run's `diagnostics.jsonl` by growing step; none where there is no such file."""
    return sorted(read_metrics(workdir / FILE), key=lambda row: row["step"])


def write_row(workdir: pathlib.Path, row: dict[str, Any]) -> None:
    """Adds a step's row to a run's `diagnostics.jsonl`, or replaces it."""
    rows = [other for other in read_rows(workdir) if other["step"] != row["step"]]
    rows = sorted([*rows, row], key=lambda row: row["step"])
    path = workdir / FILE
    replacement = path.with_suffix(".tmp")
    replacement.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.replace(replacement, path)
