"""Fine-tuning a pretrained encoder with labels, of all the training images or of a few."""

import dataclasses
import logging
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from jepa_jax.config import Config, DataConfig, InitConfig
from jepa_jax.config.fine_tune import FineTuneConfig, fine_tuning_run
from jepa_jax.data.pipeline import eval_batches, too_many_bad
from jepa_jax.data.sources import Source, open_source
from jepa_jax.encoder import architecture_of, find_encoder, is_huggingface
from jepa_jax.errors import StoppedRunError, UserError
from jepa_jax.evaluation.features import make_classify, pooled_features
from jepa_jax.evaluation.scores import top_k
from jepa_jax.interop.hub import local_path
from jepa_jax.objectives.registry import make_objective
from jepa_jax.train import pretrain
from jepa_jax.training import checkpoint
from jepa_jax.training.setup import set_up
from jepa_jax.warm_start import read_weights

log = logging.getLogger(__name__)


class FineTuned(NamedTuple):
    """What came of it.

    Attributes:
      result: for JSON: top-1 and top-5 accuracy of each split, and their mean and standard
        deviation (of a sample, n - 1; None of one split).
      scores: float32 [splits, n, classes], logits of the test images that are not bad.
      labels: int64 [n].
    """

    result: dict[str, Any]
    scores: np.ndarray
    labels: np.ndarray


def fine_tune(
    config: FineTuneConfig,
    path: str | os.PathLike,
    workdir: str | os.PathLike,
    network: str | None = None,
    *,
    from_scratch: bool = False,
    verify: bool = True,
) -> FineTuned:
    """Trains encoder and classifier on each split, and classifies the test images at the end.

    Nothing is chosen by the test images. Split i is a run in `workdir/split_<i>`, and goes on from
    its newest checkpoint when it is called again.

    Args:
      path: of the pretrained encoder: a workdir, one checkpoint, or what `--init` reads else.
      network: which of its encoders; None: the first, of I-JEPA the target encoder.
      from_scratch: the same runs, but from a random encoder: the control.
      verify: compare the files that are read with the digests that were taken when they were saved.

    Raises:
      UserError: the checkpoint can't be read, or the data have no labels or do not suit.
      StoppedRunError: as `pretrain`; or too many test images are bad.
    """
    # One checkpoint for all splits, though the run that it is of may go on.
    origin, trained, network = _origin(local_path(path), network, verify=verify)
    train = fine_tuning_run(
        config, trained, weights=str(origin), network=network, num_classes=1, split=0
    ).data
    num_classes = _count_classes(train)
    test = open_source(train, "test")
    labels = _labels(train, test, "test")
    if labels.max() >= num_classes:
        raise UserError(
            f"config.data.path = {train.path!r}: its test images have labels up to "
            f"{labels.max()}, and its training images {num_classes} classes"
        )
    splits, scores, good = list[dict[str, Any]](), [], np.ones(test.num_examples, bool)
    runs = config.low_shot.splits if config.low_shot else 1
    for split in range(runs):
        run = fine_tuning_run(
            config,
            trained,
            weights=str(origin),
            network=network,
            num_classes=num_classes,
            split=split,
        )
        if from_scratch:
            run = dataclasses.replace(run, init=InitConfig())
        folder = pathlib.Path(workdir) / f"split_{split}"
        log.info("split %d of %d: %s", split + 1, runs, folder)
        pretrain(run, folder, verify=verify)
        of_split, good = classify(run, folder, test)
        scores.append(of_split[good])
        splits.append(
            {
                "seed": run.seed,
                "top1": top_k(scores[-1], labels[good], 1),
                "top5": top_k(scores[-1], labels[good], 5),
                "workdir": str(folder),
            }
        )
        log.info("split %d: top-1 %.4f, top-5 %.4f", split, splits[-1]["top1"], splits[-1]["top5"])
    result = {
        "protocol": config.protocol,
        "network": network,
        "checkpoint": str(origin),
        "test_images": int(good.sum()),
        "splits": splits,
    }
    for name in ("top1", "top5"):
        values = [split[name] for split in splits]
        result[name] = float(np.mean(values))
        result[f"{name}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return FineTuned(result, np.stack(scores), labels[good])


def _origin(
    path: pathlib.Path, network: str | None, *, verify: bool
) -> tuple[pathlib.Path, Config, str]:
    """Where one checkpoint lies, its configuration, and the name of the encoder to start from."""
    if path.is_file() or is_huggingface(path):
        weights = read_weights(path, architecture_of("h", 14, (224, 224)).model)
        return path, weights.config, network or weights.encoders[0]
    folder = find_encoder(path, network, verify=verify)
    trained = checkpoint.read_config(folder)
    return folder, trained, checkpoint.choose_encoder(folder, network, make_objective(trained))


def _labels(data: DataConfig, source: Source, split: str) -> np.ndarray:
    if source.labels is None:
        raise UserError(
            f"config.data.path = {data.path!r}: the {split} images have no labels, which "
            "fine-tuning needs; sort them into one folder per class"
        )
    if source.classes is None:
        raise UserError(
            f"config.data.path = {data.path!r}: the {split} labels are {source.labels.dtype} "
            f"{list(source.labels.shape)}; fine-tuning needs one class of each image"
        )
    return source.classes


def _count_classes(data: DataConfig) -> int:
    """Of all training images: a list may leave some out."""
    source = open_source(dataclasses.replace(data, subset=None), "train")
    return max(len(source.class_names), int(_labels(data, source, "training").max()) + 1)


def classify(config: Config, workdir: pathlib.Path, test: Source) -> tuple[np.ndarray, np.ndarray]:
    """Logits of centre crops with the newest checkpoint of a run of its configuration.

    Returns:
      float32 [n, classes]; and bool [n], false where an image is bad.

    Raises:
      StoppedRunError: more images are bad than `data.bad_share`.
    """
    objective = make_objective(config)
    setup = set_up(config, objective, steps_per_epoch=1)
    folder = checkpoint.find(workdir, checkpoint.all_items)
    state = checkpoint.restore(folder, setup.like, objective)
    weights = (state.params, state.objective_state)
    # Filled up: of a mesh, each device has its share of every batch.
    n, size, bad = test.num_examples, config.batch_size, list[int]()
    index = np.resize(np.arange(n), -(-n // size) * size)
    batches = eval_batches(config.data, test, index=index, batch_size=size, bad=bad)
    scores = pooled_features(make_classify(objective, setup.mesh), weights, batches)[:n]
    good = ~np.isin(np.arange(n), bad)
    if too_many_bad(n - int(good.sum()), n, config.data.bad_share):
        raise StoppedRunError(
            f"{n - int(good.sum())} of {n} test images are bad, more than "
            f"config.data.bad_share = {config.data.bad_share}"
        )
    return scores, good
