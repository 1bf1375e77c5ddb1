"""Heads trained on a frozen encoder's features: the paper's linear probe, attentive probes.

The heads are trained on part of the training images, the best is chosen on the rest, and the test
images are used once, for that one.
"""

import contextlib
import os
import pathlib
import time
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.batch.spec import BatchSpec, View
from jepa_jax.config import AugmentationConfig, DataConfig, HeadsConfig
from jepa_jax.data.pipeline import eval_batches
from jepa_jax.data.sources import Source, restricted
from jepa_jax.data.stream import make_stream
from jepa_jax.errors import StoppedRunError, UserError
from jepa_jax.evaluation.backbones import Backbone
from jepa_jax.evaluation.extraction import check_share, say
from jepa_jax.evaluation.heads import (
    AttentiveHead,
    Grid,
    HeadState,
    Kind,
    LinearHead,
    initial,
    make_grid,
    make_predict,
    make_step,
    names,
    reach,
)
from jepa_jax.evaluation.probes import split_training
from jepa_jax.evaluation.scores import LOWER_IS_BETTER, MEASURE, measure, score
from jepa_jax.evaluation.tasks import Task, on_device, softmax, task_of

_REFERENCE_BATCH = 256  # images per step that the rates of LARS are for


class _Batch(NamedTuple):
    """For one step of the heads.

    Attributes:
      features: name -> [B, D] or [B, N, D]; labels: [B] or [B, K]; weights: [B], 0 of bad images.
    """

    features: dict[str, Any]
    labels: np.ndarray
    weights: np.ndarray


def train_heads(
    config: HeadsConfig,
    data: DataConfig,
    sources: Mapping[str, Source],
    backbone: Backbone,
    *,
    progress: pathlib.Path | None = None,
    warn: bool = True,
) -> dict[str, Any]:
    """Trains the whole grid, chooses, and tests.

    Args:
      sources: "train" and "test", with labels.
      progress: file that the heads are saved to after each epoch, and go on from; None: nowhere.
      warn: say so where LARS can't move the heads in so few steps.

    Returns:
      as `probes.probe`.

    Raises:
      UserError: the images are too few for a step, or to choose with.
    """
    train, test = sources["train"], sources["test"]
    labels: Any = train.labels
    task = task_of(labels, np.asarray(test.labels))
    fit, held = split_training(config, task, labels)
    steps = len(fit) // _images_per_step(config, backbone)
    if steps == 0:
        raise UserError(
            f"config.head_batch_size = {config.head_batch_size}: must be at most {len(fit)}, the "
            "training images less those to choose with"
        )
    shapes = backbone.shapes(data, train)
    grid = _grid(config, task, steps, shapes)
    if warn and config.optimizer == "lars" and reach(grid, steps * config.epochs) < 1:
        say(
            "warning: in so few steps LARS can't move the heads by their own length: they stay "
            "near their random start; raise config.lr or config.epochs, lower "
            "config.head_batch_size, or take config.optimizer = adamw"
        )
    state, first = initial(grid, shapes, config.seed), 0
    if progress is not None:
        state, first = _load(progress, state)
    shown, count = backbone.name.replace("_", " "), len(names(grid))
    heads = f"{count} heads" if count > 1 else "1 head"
    if first < config.epochs:
        say(f"{shown}: {heads}; steps an epoch: {steps:,} ...")
    step, start = make_step(grid), time.monotonic()
    draw = _augmented if config.augment else _centred
    for epoch, batches in enumerate(draw(config, data, restricted(train, fit), backbone, first)):
        losses = []
        for batch in batches:
            state, loss = step(
                state, batch.features, on_device(batch.labels), jnp.asarray(batch.weights)
            )
            losses.append(loss)
        mean = np.mean(jax.device_get(losses), axis=0)
        say(
            f"{shown}: epoch {first + epoch + 1} of {config.epochs}, losses of {heads} "
            f"{mean.min():.3f} to {mean.max():.3f}, {time.monotonic() - start:.0f} s"
        )
        if progress is not None:
            _save(progress, state, first + epoch + 1)
    return _choose_and_test(config, data, grid, state, backbone, restricted(train, held), test)


def _grid(config: HeadsConfig, task: Task, steps: int, shapes: dict[str, Any]) -> Grid:
    head: Any = LinearHead(task.outputs)
    kinds = [Kind(name, norm) for name in config.features for norm in config.batch_norm]
    if config.protocol == "attentive":
        width = shapes["tokens"].shape[-1]
        if width % config.num_heads:
            raise UserError(
                f"config.num_heads = {config.num_heads}: must divide {width}, the features' width"
            )
        head = AttentiveHead(task.outputs, config.num_heads, config.self_attention_blocks)
        kinds = [Kind("tokens", False)]

    def schedule(step: Any) -> Any:
        if config.drop_epochs is None:
            return 0.5 * (1 + jnp.cos(jnp.pi * step / (steps * config.epochs)))
        return 0.1 ** (step // (steps * config.drop_epochs)).astype(jnp.float32)

    scale = config.head_batch_size / _REFERENCE_BATCH if config.optimizer == "lars" else 1.0
    return make_grid(
        head,
        task,
        kinds,
        lr=[scale * lr for lr in config.lr],
        weight_decay=config.weight_decay,
        optimizer=config.optimizer,
        schedule=schedule,
    )


def _batch_size(config: HeadsConfig, backbone: Backbone) -> int:
    """Images of a pass of the encoder, the same number on each device."""
    return backbone.batch_size(min(config.batch_size, config.head_batch_size))


def _images_per_step(config: HeadsConfig, backbone: Backbone) -> int:
    """Of the heads: whole passes of the encoder, at least as many images as configured."""
    size = _batch_size(config, backbone)
    return -(-config.head_batch_size // size) * size


def _augmented(
    config: HeadsConfig, data: DataConfig, source: Source, backbone: Backbone, first: int
) -> Iterator[Iterator[_Batch]]:
    """Epochs of random-resized crops and flips, each with its own pass of the encoder."""
    size = _batch_size(config, backbone)
    passes = _images_per_step(config, backbone) // size
    view = View(
        "image",
        data.image_size,
        None,
        config.crop_scale,
        data.crop_aspect_ratio,
        (AugmentationConfig(flip=config.flip),),
        source.channels,
    )
    per_epoch = source.num_examples // (passes * size)
    stream = make_stream(BatchSpec((view,)), data, source, seed=config.seed, batch_size=size)

    def epoch(number: int) -> Iterator[_Batch]:
        start = number * stream.steps_per_epoch
        batches = stream.batches(start, start + per_epoch * passes, None)
        for _ in range(per_epoch):
            features, index, weights = [], [], []
            for _ in range(passes):
                batch = next(batches)
                features.append(backbone.compute(batch["image"]))
                index.append(batch["example_index"])
                weights.append(~batch["replaced"])
            joined = {
                name: jnp.concatenate([one[name] for one in features]) for name in features[0]
            }
            labels = np.asarray(source.labels)[np.concatenate(index)]
            yield _Batch(joined, labels, np.concatenate(weights).astype(np.float32))

    return (epoch(number) for number in range(first, config.epochs))


def _centred(
    config: HeadsConfig, data: DataConfig, source: Source, backbone: Backbone, first: int
) -> Iterator[Iterator[_Batch]]:
    """Epochs over the features of centre crops, which are computed once and held."""
    parts, weights = zip(*_evaluated(data, source, backbone, config.batch_size), strict=True)
    held = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    counts = np.concatenate(weights)
    size = _images_per_step(config, backbone)

    def epoch(number: int) -> Iterator[_Batch]:
        order = np.random.default_rng([config.seed, number]).permutation(len(counts))
        for start in range(0, len(order) - size + 1, size):
            index = order[start : start + size]
            labels = np.asarray(source.labels)[index]
            yield _Batch({name: held[name][index] for name in held}, labels, counts[index])

    return (epoch(number) for number in range(first, config.epochs))


def _evaluated(
    data: DataConfig, source: Source, backbone: Backbone, batch_size: int
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Features of centre crops in order, and weights: 0 of bad images."""
    size, start = backbone.batch_size(batch_size), 0
    bad: list[int] = []
    index = np.arange(source.num_examples)
    for images in eval_batches(data, source, index=index, batch_size=size, bad=bad):
        n = len(images)
        padded = np.pad(images, [(0, size - n), (0, 0), (0, 0), (0, 0)])
        features = {name: x[:n] for name, x in jax.device_get(backbone.compute(padded)).items()}
        yield features, ~np.isin(index[start : start + n], bad)
        start += n
    check_share(len(bad), len(index), "centre-cropped", data.bad_share)


def _choose_and_test(
    config: HeadsConfig,
    data: DataConfig,
    grid: Grid,
    state: HeadState,
    backbone: Backbone,
    held: Source,
    test: Source,
) -> dict[str, Any]:
    predict, task = make_predict(grid), grid.task

    def outputs_of(source: Source, heads: slice) -> tuple[np.ndarray, np.ndarray]:
        """Outputs of some heads [heads, n, K], and numbers of the images."""
        found, good = [], []
        for features, real in _evaluated(data, source, backbone, config.batch_size):
            outputs = np.asarray(predict(state, features))[heads][:, real]
            found.append(outputs)
            good.append(real)
        return np.concatenate(found, axis=1), np.flatnonzero(np.concatenate(good))

    names_of = names(grid)
    values = []
    for first in range(0, len(names_of), 4):  # a few at a time: ImageNet's outputs are large
        outputs, good = outputs_of(held, slice(first, first + 4))
        values += [measure(task, one, np.asarray(held.labels)[good]) for one in outputs]
    sign = -1 if MEASURE[task.kind] in LOWER_IS_BETTER else 1
    chosen = int(np.argmax(sign * np.nan_to_num(values, nan=-sign * np.inf)))
    (outputs,), good = outputs_of(test, slice(chosen, chosen + 1))
    outputs, labels = softmax(task, outputs), np.asarray(test.labels)[good]
    return {
        **score(task, outputs, labels, seed=config.seed),
        "chosen": names_of[chosen],
        "validation": dict(zip(names_of, values, strict=True)),
        "labels": labels,
    }


def _save(path: pathlib.Path, state: HeadState, epochs: int) -> None:
    leaves: Any = {f"leaf_{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(state))}
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(temporary, epochs=epochs, **leaves)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StoppedRunError(f"{path}: can't be written: {error.strerror or error}") from error


def _load(path: pathlib.Path, like: HeadState) -> tuple[HeadState, int]:
    """The heads, and the epochs that they are trained for; as they are if there is no such file.

    Raises:
      UserError: the file is of other heads, or damaged.
    """
    if not path.is_file():
        return like, 0
    leaves, structure = jax.tree.leaves(like), jax.tree.structure(like)
    try:
        with np.load(path, allow_pickle=False) as saved:
            found = [saved[f"leaf_{i}"] for i in range(len(leaves))]
            epochs = int(saved["epochs"])
        if [leaf.shape for leaf in leaves] != [leaf.shape for leaf in found]:
            raise ValueError("it holds heads of other shapes")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: can't go on from it: {error}; move it away") from error
    say(f"going on after epoch {epochs}: {path}")
    return jax.tree.unflatten(structure, [jnp.asarray(leaf) for leaf in found]), epochs
