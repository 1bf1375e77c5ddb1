"""From (seed, step) to a batch: which examples, which crops, which masks.

No state exists beyond the step number: epoch e visits the examples in the e-th pseudo-random
permutation of the data set, and everything drawn for an example follows from (seed, e, example).
Starting at step s gives exactly the batches of an uninterrupted run from s on.
"""

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


def batch_shapes(config: Config) -> list[dict[str, jax.ShapeDtypeStruct]]:
    """The shapes that batches can have: one for each length of the target blocks."""
    B, K, M = config.batch_size, config.masks.context_tokens, config.masks.num_targets
    return [
        {
            "image": jax.ShapeDtypeStruct((B, *config.data.image_size, 3), np.float32),
            "context_index": jax.ShapeDtypeStruct((B, K), np.int32),
            "target_index": jax.ShapeDtypeStruct((B, M, T), np.int32),
        }
        for T in mask_sampler(config).target_lengths()
    ]


def train_batches(
    config: Config, source: Source, *, start_step: int, end_step: int
) -> Iterator[Batch]:
    """The batches of steps `start_step` to `end_step - 1`.

    Yields:
      image float32 [B, H, W, 3], normalised; context_index int32 [B, K]; target_index int32
      [B, M, T]; mask_fallback bool [B] (see `MaskSampler.draw`); example_index int64 [B].

    Raises:
      StoppedRunError: an image can't be decoded; the message names it.
    """
    dataset = _train_dataset(config, source, start_step, end_step)
    iterator = iter(dataset.as_numpy_iterator())
    for step in range(start_step, end_step):
        try:
            batch = next(iterator)
        except tf.errors.OpError as error:
            raise StoppedRunError(
                f"step {step}: an image can't be read: "
                f"{_first_unreadable(config, source, step) or error.message}"
            ) from None
        yield batch


def _train_dataset(
    config: Config, source: Source, start_step: int, end_step: int
) -> tf.data.Dataset:
    data, seed, batch_size = config.data, config.seed, config.batch_size
    per_call = batch_size if source.whole_batches else 1
    calls_per_step = batch_size // per_call
    sampler = mask_sampler(config)

    def load(call: tf.Tensor) -> dict[str, tf.Tensor]:
        number = call * per_call + tf.range(per_call, dtype=tf.int64)  # [per_call]
        step, epoch, index = _locate(config, source, number)

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
        return {"image": image, "step": step, "epoch": epoch, "example_index": index}

    def add_masks(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        step, epoch = batch.pop("step")[0], batch.pop("epoch")  # a batch never spans two epochs
        return batch | sampler.draw(step, epoch, batch["example_index"])

    parallel = {"num_parallel_calls": tf.data.AUTOTUNE, "deterministic": True}
    dataset = tf.data.Dataset.range(start_step * calls_per_step, end_step * calls_per_step)
    dataset = dataset.map(load, **parallel)
    if per_call < batch_size:
        dataset = dataset.rebatch(batch_size, drop_remainder=True)
    return dataset.map(add_masks, **parallel).prefetch(4)


def _locate(
    config: Config, source: Source, number: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Step, epoch and example of the run's n-th image: int64 [n] each."""
    images_per_epoch = config.batch_size * steps_per_epoch(config, source.num_examples)
    epoch, position = number // images_per_epoch, number % images_per_epoch
    seed = tf.stack([tf.fill(tf.shape(epoch), tf.constant(config.seed, tf.int64)), epoch, epoch], 1)
    index = tf.random.experimental.index_shuffle(
        position, seed=seed, max_index=source.num_examples - 1
    )
    return number // config.batch_size, epoch, index


def _normalize(image: tf.Tensor, data: DataConfig) -> tf.Tensor:
    """0..255 to zero mean and unit variance per channel."""
    mean, std = np.float32(data.mean), np.float32(data.std)
    return (image / np.float32(255) - mean) / std


def _first_unreadable(config: Config, source: Source, step: int) -> str | None:
    """Name of the first example of a step that doesn't load by itself."""
    number = step * config.batch_size + tf.range(config.batch_size, dtype=tf.int64)
    for index in _locate(config, source, number)[2]:
        try:
            source.load(index[None], _centre(config.data), config.data.image_size)
        except tf.errors.OpError:
            return source.describe(int(index))
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
    dataset = tf.data.Dataset.from_tensor_slices(index.astype(np.int64)).batch(per_call)
    dataset = dataset.map(
        lambda i: _normalize(source.load(i, _centre(data), data.image_size), data),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    if per_call < batch_size:
        dataset = dataset.rebatch(batch_size)
    try:
        yield from dataset.prefetch(2).as_numpy_iterator()
    except tf.errors.OpError as error:
        raise StoppedRunError(f"an image can't be read: {error.message}") from None
