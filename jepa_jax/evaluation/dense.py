"""Segmentation and depth from frozen tokens: a linear head on each, trained with several rates.

The head's outputs for the patches are enlarged bilinearly to the map's size. The heads are trained
on part of the training images, the best is chosen on the rest, and the test images are used once.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jepa_jax.config import DataConfig, DenseConfig
from jepa_jax.data.pipeline import eval_batches, too_many_bad
from jepa_jax.data.sources import Source
from jepa_jax.data.targets import IGNORED
from jepa_jax.errors import StoppedRunError, UserError
from jepa_jax.evaluation.backbones import Backbone
from jepa_jax.evaluation.dense_scores import dense_measure, dense_score, of_each_image
from jepa_jax.evaluation.extraction import say
from jepa_jax.evaluation.probes import split_training
from jepa_jax.evaluation.tasks import Task

_HELD_BYTES = 2 << 30  # of tokens: above, each epoch encodes the images anew
_LOOKED_AT = 256  # images that tell the tokens' mean and deviation


class Scene(NamedTuple):
    """A split's images and their maps: uint8 or float32 [n, H, W]; see `read_targets`."""

    source: Source
    targets: np.ndarray


class _Batch(NamedTuple):
    tokens: Any  # [B, N, D]
    numbers: np.ndarray  # of the examples, [B]
    real: np.ndarray  # bool [B]: neither a bad image nor one that fills up the batch


class _Head(NamedTuple):
    """A linear head, and how to read tokens and maps.

    Attributes:
      grid: rows and columns of the patches.
      size: height and width of the maps.
      outputs: classes; 1 of depth.
      mean, std: of the tokens [D].
      offset, scale: of the distances of the training images.
    """

    segments: bool
    grid: tuple[int, int]
    size: tuple[int, int]
    outputs: int
    mean: np.ndarray
    std: np.ndarray
    offset: float = 0.0
    scale: float = 1.0


def train_dense(
    config: DenseConfig,
    data: DataConfig,
    scenes: dict[str, Scene],
    backbone: Backbone,
    *,
    grid: tuple[int, int],
) -> dict[str, Any]:
    """Trains a head with each learning rate, chooses, and tests.

    Args:
      scenes: "train" and "test".
      backbone: gives one kind of tokens [B, rows * columns, D].
      grid: rows and columns of the patches.

    Returns:
      what `dense_score` gives; chosen: the learning rate; validation: learning rate -> the same
      measure on the held-out training images; per_example: the measure of each test image alone,
      float32 [m]; labels: the numbers of those images [m].

    Raises:
      UserError: the images are too few, or no pixel of theirs counts.
      StoppedRunError: more images are bad than `data.bad_share`.
    """
    train, test = scenes["train"], scenes["test"]
    n = train.source.num_examples
    fit, held = split_training(config, Task("regression", 1), np.zeros((n, 1), np.float32))
    size = backbone.batch_size(min(config.batch_size, len(fit)))
    head = _head(config, data, train, test, backbone, fit, size, grid)
    rates = np.array(config.lr, np.float32)
    params = {
        "kernel": jnp.zeros((len(rates), len(head.mean), head.outputs)),
        "bias": jnp.zeros((len(rates), head.outputs)),
    }
    steps = -(-len(fit) // size) * config.epochs
    initialize, step = _make_step(head, rates, config.weight_decay, steps)
    state, start = initialize(params), time.monotonic()
    of_image = int(np.prod(grid)) * len(head.mean)
    read = _reader(data, train.source, backbone, fit, size, of_image)
    for epoch in range(config.epochs):
        losses = []
        for batch in read(np.random.default_rng([config.seed, epoch]).permutation(fit)):
            targets = train.targets[batch.numbers]
            params, state, loss = step(params, state, batch.tokens, targets, batch.real)
            losses.append(loss)
        mean, shown = np.mean(jax.device_get(losses), axis=0), backbone.name.replace("_", " ")
        say(
            f"{shown}: epoch {epoch + 1} of {config.epochs}, losses of {len(mean)} heads "
            f"{mean.min():.3f} to {mean.max():.3f}, {time.monotonic() - start:.0f} s"
        )
    sum_up = _make_sums(head)
    sums, _ = _sums_of(sum_up, params, train, _encoded(data, train.source, backbone, held, size))
    if not sums.shape[1]:
        raise UserError(f"config.target = {config.target!r}: the images to choose with have none")
    values = [dense_measure(config.protocol, of_head) for of_head in sums]
    sign = 1 if head.segments else -1
    chosen = int(np.argmax(sign * np.nan_to_num(values, nan=-sign * np.inf)))
    best = jax.tree.map(lambda x: x[chosen : chosen + 1], params)
    index = np.arange(test.source.num_examples)
    batches = _encoded(data, test.source, backbone, index, size)
    (sums,), numbers = _sums_of(sum_up, best, test, batches)
    return {
        **dense_score(config.protocol, sums, seed=config.seed),
        "chosen": f"lr {config.lr[chosen]:g}",
        "validation": dict(zip([f"lr {lr:g}" for lr in config.lr], values, strict=True)),
        "per_example": of_each_image(config.protocol, sums).astype(np.float32),
        "labels": numbers,
    }


def _head(
    config: DenseConfig,
    data: DataConfig,
    train: Scene,
    test: Scene,
    backbone: Backbone,
    fit: np.ndarray,
    size: int,
    grid: tuple[int, int],
) -> _Head:
    """The head before training; its scales are those of the images that it is fitted to."""
    some = fit[np.unique(np.linspace(0, len(fit) - 1, _LOOKED_AT).astype(int))]
    batches = _encoded(data, train.source, backbone, some, size)
    tokens = np.concatenate([np.asarray(batch.tokens)[batch.real] for batch in batches])
    mean, std = tokens.mean(axis=(0, 1)), np.maximum(tokens.std(axis=(0, 1)), 1e-6)
    segments = config.protocol == "segmentation"
    for split, scene in (("training", train), ("test", test)):
        if not _counts(segments, scene.targets).any():
            raise UserError(
                f"config.target = {config.target!r}: no pixel of the {split} maps counts"
            )
    if segments:
        highest = max(int(s.targets[s.targets != IGNORED].max()) for s in (train, test))
        return _Head(True, grid, data.image_size, highest + 1, mean, std)
    known = train.targets[fit]
    known = known[known > 0]
    if not len(known):
        raise UserError(f"config.target = {config.target!r}: no pixel of the training maps counts")
    offset, scale = float(known.mean(dtype=np.float64)), float(known.std(dtype=np.float64))
    return _Head(False, grid, data.image_size, 1, mean, std, offset, max(scale, 1e-6))


def _counts(segments: bool, targets: Any) -> Any:
    """Which pixels have a class or a distance."""
    return targets != IGNORED if segments else targets > 0


def _outputs(head: _Head, params: Any, tokens: Float[Array, "B N D"]) -> Float[Array, "B H W K"]:
    """Of one head: logits, or distances less `offset`, in units of `scale`."""
    x = (tokens - head.mean[None, None]) / head.std[None, None]
    y = x @ params["kernel"] + params["bias"][None, None]  # [B, N, K]
    shape = (len(tokens), *head.size, head.outputs)
    return jax.image.resize(y.reshape(len(tokens), *head.grid, head.outputs), shape, "linear")


def _make_step(
    head: _Head, rates: np.ndarray, weight_decay: float, steps: int
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Of AdamW: params -> state; and jitted (params, state, tokens, targets [B, H, W], real [B]) ->
    (params, state, losses), all heads at once; the rates end as a cosine at 0."""

    def optimizer(rate: Any) -> optax.GradientTransformation:
        def schedule(count: Any) -> Any:
            return 0.5 * rate * (1 + jnp.cos(jnp.pi * count / steps))

        return optax.adamw(schedule, weight_decay=weight_decay)

    def loss_of(params: Any, tokens: Array, targets: Array, real: Array) -> Array:
        outputs = _outputs(head, params, tokens)
        counts = _counts(head.segments, targets) & real[:, None, None]
        if head.segments:
            classes = jnp.where(counts, targets, 0).astype(jnp.int32)
            losses = optax.softmax_cross_entropy_with_integer_labels(outputs, classes)
        else:
            losses = jnp.square(outputs[..., 0] - (targets - head.offset) / head.scale)
        return jnp.sum(losses, where=counts) / jnp.maximum(jnp.sum(counts), 1)

    def step(params: Any, state: Any, tokens: Array, targets: Array, real: Array) -> Any:
        def update(params: Any, state: Any, rate: Any) -> Any:
            loss, gradient = jax.value_and_grad(loss_of)(params, tokens, targets, real)
            updates, state = optimizer(rate).update(gradient, state, params)
            return optax.apply_updates(params, updates), state, loss

        return jax.vmap(update)(params, state, rates)

    initialize = jax.vmap(lambda params, rate: optimizer(rate).init(params))
    return lambda params: initialize(params, rates), jax.jit(step, donate_argnums=(0, 1))


def _make_sums(head: _Head) -> Callable[[Any, Any, Any], Array]:
    """Jitted (params, tokens, targets [B, H, W]) -> `Sums` of each head, [heads, B, 3, K]."""

    def of_class(numbers: Array, counts: Array) -> Array:
        """How many of the pixels that count are of each class: [B, K]."""
        kept = jnp.where(counts, numbers, head.outputs).reshape(len(numbers), -1)
        return jax.vmap(lambda x: jnp.bincount(x, length=head.outputs + 1)[:-1])(kept)

    def sums(params: Any, tokens: Array, targets: Array) -> Array:
        outputs, counts = _outputs(head, params, tokens), _counts(head.segments, targets)
        if head.segments:
            told, there = jnp.argmax(outputs, axis=-1), targets.astype(jnp.int32)
            right = of_class(there, counts & (told == there))
            return jnp.stack([right, of_class(told, counts), of_class(there, counts)], axis=1)
        error = outputs[..., 0] * head.scale + head.offset - targets
        relative = jnp.abs(error) / jnp.where(counts, targets, 1.0)
        each = jnp.stack([jnp.square(error), relative, jnp.ones_like(error)], axis=1)
        return jnp.sum(each, axis=(2, 3), where=counts[:, None])[..., None]

    return jax.jit(jax.vmap(sums, in_axes=(0, None, None)))


def _sums_of(
    sum_up: Callable[[Any, Any, Any], Array], params: Any, scene: Scene, batches: Iterator[_Batch]
) -> tuple[np.ndarray, np.ndarray]:
    """[heads, m, 3, K] and numbers [m], of the good images of which some pixel counts."""
    parts, numbers = [], []
    for batch in batches:
        sums = np.asarray(sum_up(params, batch.tokens, scene.targets[batch.numbers]), np.float64)
        kept = batch.real & (sums[0, :, 2].sum(axis=-1) > 0)
        parts.append(sums[:, kept])
        numbers.append(batch.numbers[kept])
    return np.concatenate(parts, axis=1), np.concatenate(numbers)


def _reader(
    data: DataConfig,
    source: Source,
    backbone: Backbone,
    index: np.ndarray,
    size: int,
    of_image: int,
) -> Callable[[np.ndarray], Iterator[_Batch]]:
    """(the examples at `index` in some order) -> their batches; tokens are held where they fit.

    Args:
      of_image: numbers in an image's tokens.
    """
    if 4 * len(index) * of_image > _HELD_BYTES:
        return lambda order: _encoded(data, source, backbone, order, size)
    found = list(_encoded(data, source, backbone, index, size))
    tokens = np.concatenate([np.asarray(batch.tokens) for batch in found])
    real = np.concatenate([batch.real for batch in found])

    def read(order: np.ndarray) -> Iterator[_Batch]:
        for start in range(0, len(order), size):
            numbers = _filled(order[start : start + size], size)
            rows = np.searchsorted(index, numbers)
            first = np.arange(size) < len(order) - start
            yield _Batch(tokens[rows], numbers, real[rows] & first)

    return read


def _encoded(
    data: DataConfig, source: Source, backbone: Backbone, index: np.ndarray, size: int
) -> Iterator[_Batch]:
    """Tokens of centre crops, in batches of one size."""
    bad: list[int] = []
    start = 0
    for images in eval_batches(data, source, index=index, batch_size=size, bad=bad):
        if too_many_bad(len(bad), len(index), data.bad_share):
            raise StoppedRunError(
                f"{len(bad)} of {len(index)} images are bad, more than config.data.bad_share = "
                f"{data.bad_share}"
            )
        padded = np.pad(images, [(0, size - len(images)), (0, 0), (0, 0), (0, 0)])
        (tokens,) = backbone.compute(padded).values()
        numbers = _filled(index[start : start + size], size)
        yield _Batch(tokens, numbers, ~np.isin(numbers, bad) & (np.arange(size) < len(images)))
        start += size


def _filled(numbers: np.ndarray, size: int) -> np.ndarray:
    return np.pad(numbers, (0, size - len(numbers)), mode="edge")
