"""A pretrained encoder beside its controls: its own random initialisation, and raw pixels."""

import sys
import time
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import tqdm

from jepa_jax.batch.pixels import normalize
from jepa_jax.config import DataConfig, ProbeConfig
from jepa_jax.data.pipeline import eval_batches, too_many_bad
from jepa_jax.data.sources import open_source
from jepa_jax.errors import StoppedRunError, UserError
from jepa_jax.evaluation.features import Pool, make_pool, pool_padded, raw_pixels
from jepa_jax.evaluation.probes import LabelledFeatures, probe
from jepa_jax.evaluation.reduction import WIDEST, reduce
from jepa_jax.objectives.objective import Objective


class Representation(NamedTuple):
    """Features of the same images by one encoder, or without any.

    Attributes:
      columns: of the features, before they were reduced to principal components, if they were.
    """

    train: LabelledFeatures
    test: LabelledFeatures
    columns: int

    @property
    def reduced(self) -> dict[str, int] | None:
        """The number of columns before, and of principal components after; None: not reduced."""
        width = self.train.features.shape[1]
        return {"columns": self.columns, "components": width} if width < self.columns else None


def features_of(
    data: DataConfig,
    objective: Objective,
    encoders: dict[str, Any],
    *,
    batch_size: int,
    pixels: bool,
) -> dict[str, Representation]:
    """Average-pooled features of the training and test images, for each encoder.

    Args:
      encoders: name -> weights of an encoder.
      pixels: also give the images themselves, as "raw_pixels", or their principal components.

    Raises:
      UserError: the data have no labels, or the training images only one.
      StoppedRunError: more images are bad than `data.bad_share`; up to there they are left out.
    """
    pool = make_pool(objective)
    train, test = (
        _extract(data, split, pool, encoders, batch_size=batch_size, pixels=pixels)
        for split in ("train", "test")
    )
    found = {}
    for name in list(train):
        pair = train.pop(name), test.pop(name)
        columns = pair[0].features.shape[1]
        # Only a control: an encoder's features are what is judged, however wide.
        if name not in encoders and columns > WIDEST:
            _say(f"{name.replace('_', ' ')}: principal components of {columns:,} columns ...")
            pair = reduce(*pair)
        found[name] = Representation(*pair, columns)
    return found


def _extract(
    data: DataConfig,
    split: Literal["train", "test"],
    pool: Pool,
    encoders: dict[str, Any],
    *,
    batch_size: int,
    pixels: bool,
) -> dict[str, LabelledFeatures]:
    """All representations in one pass: decoding photos takes longer than encoding them."""
    source = open_source(data, split)
    if source.labels is None:
        raise UserError(
            f"config.data.path = {data.path!r}: the {split} images have no labels, which a probe "
            "needs; sort them into one folder per class"
        )
    classes = np.unique(source.labels)
    if split == "train" and len(classes) < 2:
        raise UserError(
            f"config.data.path = {data.path!r}: all training images are of one class"
            f"{', ' + source.class_names[classes[0]] if source.class_names else ''}; a probe needs "
            "at least two"
        )
    n, start, bad = source.num_examples, 0, list[int]()
    index = np.arange(n)
    shape = (n if pixels else 0, *data.image_size, source.channels)
    held = np.empty(shape, source.dtype)
    parts: dict[str, list[Any]] = {name: [] for name in encoders}
    _say(f"encoding {n:,} {split} images ...")
    # The bar on a terminal only: elsewhere it would be one long line.
    with tqdm.tqdm(total=n, unit="img", desc=f"{split} images", disable=None) as bar:
        for images in eval_batches(data, source, index=index, batch_size=batch_size, bad=bad):
            for name, weights in encoders.items():
                parts[name].append(pool_padded(pool, weights, images, batch_size))
            if pixels:
                held[start : start + len(images)] = images
            start += len(images)
            jax.block_until_ready(parts)  # or the bar would run ahead, and images queue up
            bar.update(len(images))
    features = {name: np.concatenate(jax.device_get(part)) for name, part in parts.items()}
    if pixels:
        features["raw_pixels"] = raw_pixels(normalize(held, data.mean, data.std))
    good = ~np.isin(index, bad)
    num_bad = n - int(good.sum())
    if too_many_bad(num_bad, n, data.bad_share):
        raise StoppedRunError(
            f"{num_bad} of {n} {split} images are bad, more than config.data.bad_share = "
            f"{data.bad_share}"
        )
    if num_bad:
        _say(f"left out: {num_bad} bad {split} images (python -m jepa_jax.data check names all)")
    labels = source.labels[good]
    return {name: LabelledFeatures(array[good], labels) for name, array in features.items()}


def probe_each(
    config: ProbeConfig, representations: dict[str, Representation]
) -> dict[str, dict[str, Any]]:
    """What `probe` gives for each representation; says on standard error what it is at.

    Raises:
      UserError: as `probe`.
    """
    results = {}
    symbol = {"knn": "k", "linear": "C"}[config.protocol]
    for name, found in representations.items():
        what = f"{config.protocol} probe, {name.replace('_', ' ')}"

        def on_slow_fit(value: float, seconds: float, what: str = what) -> None:
            _say(f"{what}: fitted with {symbol} = {value:g} in {seconds:.1f} s")

        candidates = ", ".join(f"{value:g}" for value in config.candidates)
        _say(f"{what}: {symbol} of {candidates} ...")
        start = time.monotonic()
        results[name] = probe(config, found.train, found.test, on_slow_fit=on_slow_fit)
        seconds = time.monotonic() - start
        _say(f"{what}: {results[name]['accuracy']:.3f} in {seconds:.1f} s")
    return results


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
