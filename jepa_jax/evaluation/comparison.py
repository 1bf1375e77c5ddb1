"""A pretrained encoder beside its controls: its own random initialisation, and raw pixels."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jepa_jax.config import DataConfig, KnnConfig, LinearConfig
from jepa_jax.data.sources import Source, open_source
from jepa_jax.errors import UserError
from jepa_jax.evaluation.extraction import (
    Control,
    Sink,
    encode_images,
    flat_pixels,
    on_all_devices,
    say,
)
from jepa_jax.evaluation.probes import LabelledFeatures, probe
from jepa_jax.evaluation.reduction import WIDEST, reduce
from jepa_jax.evaluation.scores import measured, over_splits
from jepa_jax.objectives.objective import Objective

_PIXEL_BYTES = 1 << 30  # of raw pixels that are held; above, colour histograms take their place
_SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")

# (split, source, name of an encoder) -> where its features go
SinkOf = Callable[[str, Source, str], Sink]


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
        width = self.train.rows.shape[1]
        return {"columns": self.columns, "components": width} if width < self.columns else None


def features_of(
    data: DataConfig,
    objective: Objective,
    encoders: Mapping[str, Any],
    *,
    batch_size: int,
    pixels: bool,
    layers: tuple[int, ...] | None = None,
    sink: SinkOf | None = None,
    sources: Mapping[str, Source] | None = None,
) -> dict[str, Representation]:
    """Average-pooled features of the training and test images, for each encoder.

    Args:
      encoders: name -> weights of an encoder.
      pixels: also give the images themselves, as "raw_pixels", or their principal components; where
        they do not fit in memory, as "colour_histograms".
      layers: blocks whose means are concatenated, counted from 0; None: the last alone.
      sink: where the encoders' features go; None: to memory.
      sources: "train" and "test"; None: those of `data`.

    Raises:
      UserError: the data have no labels, or the training images only one.
      StoppedRunError: more images are bad than `data.bad_share`; up to there they are left out.
    """
    spread = on_all_devices(objective, encoders, batch_size=batch_size, layers=layers)
    sources = sources or labelled_sources(data)
    control = control_for(data, list(sources.values())) if pixels else None
    found: dict[str, dict[str, LabelledFeatures]] = {}
    for split, source in sources.items():
        rows, good = encode_images(
            data,
            source,
            split,
            spread,
            control=control,
            sink=None if sink is None else functools.partial(sink, split, source),
        )
        labels: Any = source.labels
        for name, of_name in rows.items():
            features: Any = of_name
            if name == "raw_pixels":
                features = flat_pixels(of_name, data, source.dtype)
            found.setdefault(name, {})[split] = LabelledFeatures(features, labels[good])
    return {name: _represented(name, found.pop(name), name in encoders) for name in list(found)}


def _represented(name: str, found: dict[str, LabelledFeatures], is_encoder: bool) -> Representation:
    pair = found["train"], found["test"]
    columns = pair[0].rows.shape[1]
    # Only a control: an encoder's features are what is judged, however wide.
    if not is_encoder and columns > WIDEST:
        say(f"{name.replace('_', ' ')}: principal components of {columns:,} columns ...")
        pair = reduce(*pair)
    return Representation(*pair, columns)


def labelled_sources(data: DataConfig) -> dict[str, Source]:
    """Training and test images, with labels; see `labelled_source`."""
    return {split: labelled_source(data, split) for split in _SPLITS}


def labelled_source(data: DataConfig, split: Literal["train", "test"]) -> Source:
    """Images that a probe can learn from.

    Raises:
      UserError: they have no labels, or the training images only one class.
    """
    source = open_source(data, split)
    if source.labels is None:
        raise UserError(
            f"config.data.path = {data.path!r}: the {split} images have no labels, which a probe "
            "needs; sort them into one folder per class"
        )
    classes = np.unique(source.labels) if source.labels.ndim == 1 else None
    if split == "train" and classes is not None and len(classes) < 2:
        raise UserError(
            f"config.data.path = {data.path!r}: all training images are of one class"
            f"{', ' + source.class_names[classes[0]] if source.class_names else ''}; a probe needs "
            "at least two"
        )
    return source


def control_for(data: DataConfig, sources: list[Source]) -> Control:
    """Raw pixels, or what takes their place where they do not fit in memory."""
    images = sum(source.num_examples for source in sources)
    size = int(np.prod(data.image_size)) * sources[0].channels * sources[0].dtype.itemsize
    return "raw_pixels" if images * size <= _PIXEL_BYTES else "colour_histograms"


def probe_each(
    config: KnnConfig | LinearConfig,
    representations: Mapping[str, Representation],
    splits: Sequence[np.ndarray] = (),
) -> dict[str, dict[str, Any]]:
    """What `probe` gives for each representation; says on standard error what it is at.

    Args:
      splits: of low-shot probes, numbers of the training images of each; then it is what
        `scores.over_splits` gives, and what was chosen for each.

    Raises:
      UserError: as `probe`.
    """
    results = {}
    symbol = {"knn": "k", "linear": "C"}[config.protocol]
    for name, found in representations.items():
        what = f"{config.protocol} probe, {name.replace('_', ' ')}"

        def on_slow_fit(value: float, seconds: float, what: str = what) -> None:
            say(f"{what}: fitted with {symbol} = {value:g} in {seconds:.1f} s")

        candidates = ", ".join(f"{value:g}" for value in config.candidates)
        say(f"{what}: {symbol} of {candidates} ...")
        start = time.monotonic()
        if len(splits):
            each = [
                probe(config, found.train.take(index), found.test, on_slow_fit=on_slow_fit)
                for index in splits
            ]
            results[name] = over_splits(each, seed=config.seed)
            results[name]["chosen"] = [one["chosen"] for one in each]
        else:
            results[name] = probe(config, found.train, found.test, on_slow_fit=on_slow_fit)
        seconds = time.monotonic() - start
        say(f"{what}: {results[name][measured(results[name])]:.3f} in {seconds:.1f} s")
    return results
