"""The pictures that a run draws of itself into its workdir, with and without labels."""

import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jepa_jax.batch.spec import Stream
from jepa_jax.config import Config
from jepa_jax.data.pipeline import eval_batches
from jepa_jax.data.sources import Source
from jepa_jax.errors import StoppedRunError
from jepa_jax.evaluation.features import make_encode
from jepa_jax.objectives.objective import Objective
from jepa_jax.reporting.batch_pictures import masks_picture
from jepa_jax.reporting.pictures import curves_picture, pca_picture
from jepa_jax.training.metrics import read_metrics
from jepa_jax.training.sharding import make_mesh

log = logging.getLogger(__name__)

_IMAGES = 10
_MASK_ROWS = 4


def make_gallery(
    config: Config, objective: Objective, source: Source, stream: Stream, workdir: pathlib.Path
) -> Callable[[int, Any], list[pathlib.Path]] | None:
    """A function (step, weights of the first encoder) -> PNG files that it drew.

    At step 0 it draws `masks.png`; later `curves.png`, and `feature_pca.png`: principal components
    of the features of ten training images, at the start and now. Of several processes all must call
    it, and the first one draws. What goes wrong is logged, and does not stop the run.

    Returns:
      None if these images can't be read, which is logged.
    """
    mesh = make_mesh(config.mesh)
    shares = mesh.shape["data"] * mesh.shape["fsdp"]
    index = shown_examples(source)
    filled = np.resize(index, -(-len(index) // shares) * shares)
    images, problem = None, "another process can't read an image"
    try:
        images = next(
            eval_batches(config.data, source, index=filled, batch_size=len(filled), bad=[])
        )
    except StoppedRunError as error:
        problem = str(error)
    read = multihost_utils.process_allgather(np.int32(images is not None))
    if images is None or not np.all(read):  # all processes must draw, or none
        log.warning("no pictures: %s", problem)
        return None
    encode, first = make_encode(objective, mesh), jax.process_index() == 0
    tokens_file = workdir / "feature_pca_start.npy"

    def masks() -> Iterator[pathlib.Path]:
        if objective.needs.masks is not None:
            rows = np.arange(min(_MASK_ROWS, config.batch_size))
            batch, path = next(stream.batches(0, 1, rows)), workdir / "masks.png"
            masks_picture(path, config, objective.needs, batch, [""] * len(rows))
            yield path

    def curves_and_components(step: int, tokens: np.ndarray) -> Iterator[pathlib.Path]:
        path = workdir / "curves.png"
        curves_picture(path, config, read_metrics(workdir / "metrics.jsonl"))
        yield path
        rows = {"at the start": np.load(tokens_file)} if tokens_file.exists() else {}
        rows[f"step {step}"] = tokens
        path = workdir / "feature_pca.png"
        pca_picture(path, images[: len(index)], rows, config.grid)
        yield path

    def components(step: int, weights: Any) -> Iterator[pathlib.Path]:
        tokens = np.asarray(jax.device_get(encode(weights, images)))[: len(index)]  # [n, N, D]
        if step == 0 and first:
            np.save(tokens_file, tokens)
        elif first:
            yield from curves_and_components(step, tokens)

    def draw(step: int, weights: Any) -> list[pathlib.Path]:
        of_start = _drawn(masks()) if step == 0 and first else []
        return of_start + _drawn(components(step, weights))

    return draw


def _drawn(pictures: Iterator[pathlib.Path]) -> list[pathlib.Path]:
    """Those that are drawn before something goes wrong."""
    paths = []
    try:
        for path in pictures:
            paths.append(path)
    except Exception as error:  # a picture is not worth a run
        log.warning("a picture could not be drawn: %s: %s", type(error).__name__, error)
    return paths


def shown_examples(source: Source) -> np.ndarray:
    """Ten images by number, the same ones every time: of different classes, if there are some."""
    if source.classes is not None:
        first_of_class = np.unique(source.classes, return_index=True)[1]
        if len(first_of_class) >= _IMAGES:
            return first_of_class[:_IMAGES]
    number = min(_IMAGES, source.num_examples)
    return np.linspace(0, source.num_examples - 1, number).astype(int)
