"""All representations of a split's images in one pass: decoding takes longer than encoding."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
import tqdm

from jepa_jax.batch.pixels import standardize
from jepa_jax.config import DataConfig, MeshConfig
from jepa_jax.data.pipeline import eval_batches, too_many_bad
from jepa_jax.data.sources import Source
from jepa_jax.errors import StoppedRunError
from jepa_jax.evaluation.features import Pool, colour_histograms, make_pool, pool_padded, raw_pixels
from jepa_jax.evaluation.rows import Rows
from jepa_jax.objectives.objective import Objective
from jepa_jax.training.sharding import make_mesh, replicated

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


class Encoders(NamedTuple):
    """Encoders of one objective on all devices of this process.

    Attributes:
      pool: (weights, images [B, H, W, C]) -> features [B, ...].
      weights: of each encoder, by name.
      batch_size: B, a multiple of the devices.
    """

    pool: Pool
    weights: Mapping[str, Any]
    batch_size: int


def on_all_devices(
    objective: Objective,
    weights: Mapping[str, Any],
    *,
    batch_size: int,
    layers: tuple[int, ...] | None = None,
    pooled: bool = True,
) -> Encoders:
    """Encoders whose work the devices share.

    Args:
      batch_size: is rounded up to the same number on each device.
      layers, pooled: see `make_pool`.
    """
    devices = jax.device_count()
    mesh = make_mesh(MeshConfig()) if devices > 1 else None
    if mesh is not None:  # restored weights lie on the first device alone
        weights = {name: jax.device_put(one, replicated(mesh)) for name, one in weights.items()}
    pool = make_pool(objective, mesh, layers=layers, pooled=pooled)
    return Encoders(pool, weights, -(-batch_size // devices) * devices)


def encode_images(
    data: DataConfig,
    source: Source,
    split: str,
    encoders: Encoders,
    *,
    control: Control | None = None,
    sink: Callable[[str], Sink] | None = None,
) -> tuple[dict[str, Rows], np.ndarray]:
    """Features of all images of a split that are not bad.

    Args:
      control: also give the images without any network.
      sink: name of an encoder -> where its features go; None: to memory.

    Returns:
      name -> features, the control's by its own name; and numbers of the images that they are of.

    Raises:
      StoppedRunError: more images are bad than `data.bad_share`.
    """
    n = source.num_examples
    sinks: dict[str, Sink] = {name: sink(name) if sink else InMemory() for name in encoders.weights}
    if control is not None:
        sinks[control] = InMemory()
    start = min((one.done for one in sinks.values()), default=n)
    if start < n:
        found = f", {start:,} of them in files already" if start else ""
        if control is not None and all(sinks[name].done == n for name in encoders.weights):
            say(f"reading {n:,} {split} images for the control; the features are in files ...")
        else:
            say(f"encoding {n:,} {split} images{found} ...")
    _encode(data, source, encoders, sinks, control, start, name=split)
    bad = next(iter(sinks.values())).bad() if sinks else np.empty(0, np.int64)
    check_share(len(bad), n, split, data.bad_share)
    if len(bad):
        say(f"left out: {len(bad)} bad {split} images (python -m jepa_jax.data check names all)")
    good = np.setdiff1d(np.arange(n), bad)
    rows = {name: one.rows() for name, one in sinks.items()}
    return {name: one.take(good) if len(bad) else one for name, one in rows.items()}, good


def check_share(bad: int, n: int, what: str, share: float) -> None:
    """Raises StoppedRunError if more of n images are bad than a probe bears."""
    if too_many_bad(bad, n, share):
        raise StoppedRunError(
            f"{bad} of {n} {what} images are bad, more than config.data.bad_share = {share}"
        )


def _encode(
    data: DataConfig,
    source: Source,
    encoders: Encoders,
    sinks: dict[str, Sink],
    control: Control | None,
    start: int,
    *,
    name: str,
) -> None:
    n = source.num_examples
    bad: list[int] = []
    pool, of_encoders, batch_size = encoders
    batches = eval_batches(data, source, index=np.arange(start, n), batch_size=batch_size, bad=bad)
    # The bar on a terminal only: elsewhere it would be one long line.
    with tqdm.tqdm(total=n, initial=start, unit="img", desc=f"{name} images", disable=None) as bar:
        for images in batches if start < n else ():
            end = start + len(images)
            features = {
                which: pool_padded(pool, weights, images, batch_size)
                for which, weights in of_encoders.items()
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


def say(line: str) -> None:
    """To standard error, at once."""
    print(line, file=sys.stderr, flush=True)
