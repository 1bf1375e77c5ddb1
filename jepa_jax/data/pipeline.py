"""From (seed, step) to a batch: which examples, which crops, which masks.

No state exists beyond the step number: epoch e visits the examples in the e-th pseudo-random
permutation of the data set, and everything drawn for an example follows from (seed, e, example).
Starting at step s gives exactly the batches of an uninterrupted run from s on.
"""

import os
from collections.abc import Iterator

import jax
import numpy as np
import tensorflow as tf

from jepa_jax.config import Config, DataConfig
from jepa_jax.data.crops import center_crop, random_resized_crop
from jepa_jax.data.masks import MaskSampler
from jepa_jax.data.sources import Source
from jepa_jax.errors import StoppedRunError, UserError

Batch = dict[str, np.ndarray]

# No stage has Python control flow on tensors, so none needs AutoGraph to rewrite its source.
_graph = tf.autograph.experimental.do_not_convert
# As many calls at a time as there are cores for this process (Linux tells).
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_PARALLEL = {"num_parallel_calls": _CORES, "deterministic": True}


def steps_per_epoch(config: Config, num_examples: int) -> int:
    """Whole batches in the data set; the rest of an epoch's permutation is dropped.

    Raises:
      UserError: the data set is smaller than a batch.
    """
    if num_examples < config.batch_size:
        raise UserError(
            f"config.batch_size = {config.batch_size}: the data set has only {num_examples} images"
        )
    return num_examples // config.batch_size


def mask_sampler(config: Config) -> MaskSampler:
    return MaskSampler(masks=config.masks, grid=config.grid, seed=config.seed)


def batch_shapes(config: Config, *, step: int = 0) -> list[dict[str, jax.ShapeDtypeStruct]]:
    """The shapes that batches can have, one a length of the target blocks; that of `step` first."""
    B, K, M = config.batch_size, config.masks.context_tokens, config.masks.num_targets
    sampler = mask_sampler(config)
    needed = sampler.block_sizes(tf.constant(step, tf.int64))[-1].numpy().prod()
    return [
        {
            "image": jax.ShapeDtypeStruct((B, *config.data.image_size, 3), np.float32),
            "context_index": jax.ShapeDtypeStruct((B, K), np.int32),
            "target_index": jax.ShapeDtypeStruct((B, M, T), np.int32),
        }
        for T in sorted(sampler.target_lengths(), key=lambda T: abs(T - needed))
    ]


def train_batches(
    config: Config,
    source: Source,
    *,
    start_step: int,
    end_step: int,
    rows: np.ndarray | None = None,
) -> Iterator[Batch]:
    """The batches of steps `start_step` to `end_step - 1`, or some rows of each.

    Args:
      rows: of the whole batch, those that this process needs; only these images are read. None for
        all.

    Yields:
      image float32 [b, H, W, 3], normalised; context_index int32 [b, K]; target_index int32
      [b, M, T]; mask_fallback bool [b] (see `MaskSampler.draw`); example_index int64 [b]; b is the
      number of rows.

    Raises:
      StoppedRunError: an image can't be decoded; the message names it.
    """
    rows = np.arange(config.batch_size) if rows is None else rows
    dataset = _train_dataset(config, source, start_step, end_step, rows)
    iterator = iter(dataset.as_numpy_iterator())
    for step in range(start_step, end_step):
        try:
            batch = next(iterator)
        except tf.errors.OpError as error:
            number = tf.constant(step * config.batch_size + rows, tf.int64)
            index = _locate(config, source, number)[1].numpy()
            raise StoppedRunError(
                f"step {step}: an image can't be read: "
                f"{_first_unreadable(config.data, source, index) or error.message}"
            ) from None
        yield batch


def _train_dataset(
    config: Config, source: Source, start_step: int, end_step: int, rows: np.ndarray
) -> tf.data.Dataset:
    data, seed, batch_size = config.data, config.seed, config.batch_size
    per_call = len(rows) if source.whole_batches else 1
    calls_per_step = len(rows) // per_call
    rows_of_call = tf.constant(rows.reshape(calls_per_step, per_call), tf.int64)
    sampler = mask_sampler(config)

    @_graph
    def load(call: tf.Tensor) -> dict[str, tf.Tensor]:
        number = call // calls_per_step * batch_size + rows_of_call[call % calls_per_step]
        epoch, index = _locate(config, source, number)

        def crop(height: tf.Tensor, width: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
            return random_resized_crop(
                height,
                width,
                scale=data.crop_scale,
                aspect_ratio=data.crop_aspect_ratio,
                seed=seed,
                epoch=epoch,
                index=index,
            )

        image = _normalize(source.load(index, crop, data.image_size), data)
        return {"image": image, "number": number, "example_index": index}

    @_graph
    def add_masks(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        number, index = batch.pop("number"), batch["example_index"]
        epoch, _ = _locate(config, source, number)
        return batch | sampler.draw(number[0] // batch_size, epoch, index)

    dataset = tf.data.Dataset.range(start_step * calls_per_step, end_step * calls_per_step)
    dataset = dataset.map(load, **_PARALLEL)
    if calls_per_step > 1:
        dataset = dataset.rebatch(len(rows), drop_remainder=True)
    return dataset.map(add_masks, **_PARALLEL).prefetch(4).with_options(_fixed())


def _fixed() -> tf.data.Options:
    """No tuning: the tuner sleeps, longer and longer, and an iterator that ends may wait for it.

    Seen with TensorFlow 2.21 once in ten times: up to half the iterator's life, 40 s after minutes.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return options


def _locate(config: Config, source: Source, number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Epoch (scalar int64) and examples (int64 [n]) of images of the run, all of one batch.

    Args:
      number: int64 [n], counting the run's images from 0 on.
    """
    images_per_epoch = config.batch_size * steps_per_epoch(config, source.num_examples)
    epoch = number[0] // images_per_epoch  # a batch never spans two epochs
    index = tf.random.experimental.index_shuffle(
        number % images_per_epoch,
        seed=tf.stack([tf.constant(config.seed, tf.int64), epoch]),
        max_index=source.num_examples - 1,
    )
    return epoch, index


def _normalize(image: tf.Tensor, data: DataConfig) -> tf.Tensor:
    """0..255 to zero mean and unit variance per channel."""
    mean, std = np.float32(data.mean), np.float32(data.std)
    return (image / np.float32(255) - mean) / std


def _first_unreadable(data: DataConfig, source: Source, index: np.ndarray) -> str | None:
    """Name of the first of some examples that doesn't load by itself."""
    for i in index:
        try:
            source.load(tf.constant([i], tf.int64), _centre(data), data.image_size)
        except tf.errors.OpError:
            return source.describe(int(i))
    return None


def _centre(data: DataConfig):
    aspect_ratio = data.image_size[1] / data.image_size[0]

    def crop(height: tf.Tensor, width: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        del index
        return center_crop(height, width, aspect_ratio=aspect_ratio, share=data.eval_crop)

    return crop


def eval_batches(
    data: DataConfig, source: Source, *, index: np.ndarray, batch_size: int
) -> Iterator[np.ndarray]:
    """Centre-cropped, normalised images in the order of `index`.

    Yields:
      float32 [batch_size, H, W, 3]; the last one may be shorter.

    Raises:
      StoppedRunError: an image can't be decoded; the message names it.
    """
    per_call = batch_size if source.whole_batches else 1
    # All calls have one static shape: the last batch is filled up here, and cut below.
    num_batches = -(-len(index) // batch_size)
    filled = np.pad(index, (0, num_batches * batch_size - len(index)), mode="edge")
    dataset = tf.data.Dataset.from_tensor_slices(filled.astype(np.int64))
    dataset = dataset.batch(per_call, drop_remainder=True).map(
        _graph(lambda i: _normalize(source.load(i, _centre(data), data.image_size), data)),
        **_PARALLEL,
    )
    if per_call < batch_size:
        dataset = dataset.rebatch(batch_size, drop_remainder=True)
    iterator = iter(dataset.prefetch(2).with_options(_fixed()).as_numpy_iterator())
    for start in range(0, len(index), batch_size):
        try:
            images = next(iterator)
        except tf.errors.OpError as error:
            unreadable = _first_unreadable(data, source, index[start : start + batch_size])
            raise StoppedRunError(
                f"an image can't be read: {unreadable or error.message}"
            ) from None
        yield images[: len(index) - start]
