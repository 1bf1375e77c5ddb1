"""All representations of a split's images in one pass: decoding takes longer than encoding."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import numpy as np
import tqdm

from jepa_jax.batch.pixels import standardize
from jepa_jax.config import DataConfig
from jepa_jax.data.pipeline import eval_batches, too_many_bad
from jepa_jax.data.sources import Source
from jepa_jax.errors import StoppedRunError
from jepa_jax.evaluation.features import Pool, colour_histograms, pool_padded, raw_pixels
from jepa_jax.evaluation.rows import Rows

Control = Literal["raw_pixels", "colour_histograms"]


@runtime_checkable
class Sink(Protocol):
    """Where the features of a split go, in the order of its images; see `FeatureFiles`."""

    done: int

    def add(self, rows: np.ndarray, bad: list[int]) -> None: ...
    def rows(self) -> Rows: ...
    def bad(self) -> np.ndarray: ...


class InMemory:
    """A `Sink` that holds all features."""

    def __init__(self) -> None:
        self.done = 0
        self._parts: list[np.ndarray] = []
        self._bad: list[int] = []

    def add(self, rows: np.ndarray, bad: list[int]) -> None:
        self.done += len(rows)
        self._parts.append(rows)
        self._bad += bad

    def rows(self) -> Rows:
        return Rows([np.concatenate(self._parts)])

    def bad(self) -> np.ndarray:
        return np.array(self._bad, np.int64)


def encode_images(
    data: DataConfig,
    source: Source,
    split: str,
    pool: Pool,
    encoders: Mapping[str, Any],
    *,
    batch_size: int,
    control: Control | None = None,
    sink: Callable[[str], Sink] | None = None,
) -> tuple[dict[str, Rows], np.ndarray]:
    """Features of all images of a split that are not bad.

    Args:
      pool: (weights, images [B, H, W, C]) -> features [B, ...].
      encoders: name -> weights.
      control: also give the images without any network.
      sink: name of an encoder -> where its features go; None: to memory.

    Returns:
      name -> features, the control's by its own name; and numbers of the images that they are of.

    Raises:
      StoppedRunError: more images are bad than `data.bad_share`.
    """
    n = source.num_examples
    sinks: dict[str, Sink] = {name: sink(name) if sink else InMemory() for name in encoders}
    if control is not None:
        sinks[control] = InMemory()
    start = min((one.done for one in sinks.values()), default=n)
    if start < n:
        found = f", {start:,} of them in files already" if start else ""
        if control is not None and all(sinks[name].done == n for name in encoders):
            _say(f"reading {n:,} {split} images for the control; the features are in files ...")
        else:
            _say(f"encoding {n:,} {split} images{found} ...")
    _encode(data, source, pool, encoders, sinks, control, start, batch_size=batch_size, name=split)
    bad = next(iter(sinks.values())).bad() if sinks else np.empty(0, np.int64)
    if too_many_bad(len(bad), n, data.bad_share):
        raise StoppedRunError(
            f"{len(bad)} of {n} {split} images are bad, more than config.data.bad_share = "
            f"{data.bad_share}"
        )
    if len(bad):
        _say(f"left out: {len(bad)} bad {split} images (python -m jepa_jax.data check names all)")
    good = np.setdiff1d(np.arange(n), bad)
    rows = {name: one.rows() for name, one in sinks.items()}
    return {name: one.take(good) if len(bad) else one for name, one in rows.items()}, good


def _encode(
    data: DataConfig,
    source: Source,
    pool: Pool,
    encoders: Mapping[str, Any],
    sinks: dict[str, Sink],
    control: Control | None,
    start: int,
    *,
    batch_size: int,
    name: str,
) -> None:
    n = source.num_examples
    bad: list[int] = []
    batches = eval_batches(data, source, index=np.arange(start, n), batch_size=batch_size, bad=bad)
    # The bar on a terminal only: elsewhere it would be one long line.
    with tqdm.tqdm(total=n, initial=start, unit="img", desc=f"{name} images", disable=None) as bar:
        for images in batches if start < n else ():
            end = start + len(images)
            features = {
                which: pool_padded(pool, weights, images, batch_size)
                for which, weights in encoders.items()
                if sinks[which].done < end
            }
            rows = jax.device_get(features)
            if control is not None:
                histograms = control == "colour_histograms"
                rows[control] = colour_histograms(images) if histograms else images
            for which, of_encoder in rows.items():
                one = sinks[which]
                begin = max(one.done, start)  # a sink may hold rows that are not done
                one.add(of_encoder[begin - start :], [i for i in bad if begin <= i < end])
            start = end
            bar.update(len(images))


def flat_pixels(rows: Rows, data: DataConfig, dtype: np.dtype) -> np.ndarray:
    """Images that were kept as "raw_pixels", as features float32 [n, H * W * C]."""
    shares = rows.all() / np.float32(np.iinfo(dtype).max)
    return raw_pixels(standardize(shares, data.mean, data.std))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
