"""From (seed, step) to a batch: which examples, which crops, which masks, as an objective declares.

No state exists beyond the step number: epoch e visits the examples in the e-th pseudo-random
permutation of the data set, and everything drawn for an example follows from (seed, e, example).
Starting at step s gives exactly the batches of an uninterrupted run from s on.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from jepa_jax.batch.masks import MaskedBlocks, MultiBlock, RandomPatches
from jepa_jax.batch.spec import BatchSpec, DataIdentity, Shapes, Stream
from jepa_jax.config import DataConfig
from jepa_jax.data.augment import augment
from jepa_jax.data.crops import view_crops
from jepa_jax.data.masks import MaskSampler, draw_masked_blocks, draw_random_patches
from jepa_jax.data.pipeline import (
    PARALLEL,
    calls_of,
    first_problem,
    fixed_options,
    graph,
    numpy_iterator,
    too_many_bad,
)
from jepa_jax.data.sources import Source
from jepa_jax.errors import BadDataError, UserError

_BATCHES_AHEAD = 4


def make_stream(
    needs: BatchSpec, data: DataConfig, source: Source, *, seed: int, batch_size: int
) -> Stream:
    """Training batches of a source's images, as an objective needs them.

    A batch also holds, for this host alone, example_index int64 [b], replaced bool [b], true where
    an example's image is bad and is that of the next good example, with its label, and, of
    multi-block masks, mask_fallback bool [b] (see `MaskSampler.draw`).

    Args:
      data: what share of bad images is borne.
      seed, batch_size: of the run.

    Raises:
      UserError: the data set is smaller than a batch, or lacks the labels that are needed.
    """
    if source.num_examples < batch_size:
        raise UserError(
            f"config.batch_size = {batch_size}: the data set has only {source.num_examples} images"
        )
    if needs.labels is not None:
        _check_labels(needs.labels, data, source)
    drawn = _Batches(needs, data, source, seed, batch_size)
    counted = {"replaced": "their images are bad; the next good ones took their places"}
    if isinstance(needs.masks, MultiBlock):
        counted["mask_fallback"] = "no mask draw fitted, so that their targets are stacked"
    return Stream(
        identity=DataIdentity(source.num_examples, source.digest),
        steps_per_epoch=drawn.steps_per_epoch,
        variants=drawn.variants,
        batches=drawn.batches,
        counted=counted,
    )


def _check_labels(num_classes: int, data: DataConfig, source: Source) -> None:
    """A label beyond the last class would be trained on as if it were none."""
    field = f"config.data.path = {data.path!r}"
    if source.labels is None:
        raise UserError(
            f"{field}: the training images have no labels, which this objective needs; sort them "
            "into one folder per class"
        )
    if source.classes is None:
        raise UserError(
            f"{field}: its labels are {source.labels.dtype} {list(source.labels.shape)}, and this "
            "objective needs one class of each image"
        )
    low, high = int(source.labels.min()), int(source.labels.max())
    if low < 0 or high >= num_classes:
        raise UserError(
            f"{field}: its labels go from {low} to {high}, and config.objective.num_classes = "
            f"{num_classes}; must be at least {high + 1}"
        )


@dataclasses.dataclass(frozen=True)
class _Batches:
    needs: BatchSpec
    data: DataConfig
    source: Source
    seed: int
    batch_size: int

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches; the rest of an epoch's permutation is dropped."""
        return self.source.num_examples // self.batch_size

    def variants(self, step: int) -> tuple[tuple[Shapes, float], ...]:
        """The shapes of a batch, nearest first to those of this step."""
        variants = self.needs.variants(self.batch_size, self.source.dtype)
        if not isinstance(self.needs.masks, MultiBlock):
            return variants
        sampler = MaskSampler(self.needs.masks, self.seed)
        needed = sampler.block_sizes(tf.constant(step, tf.int64))[-1].numpy().prod()
        return tuple(sorted(variants, key=lambda v: abs(v[0]["target_index"].shape[-1] - needed)))

    def batches(
        self, start_step: int, end_step: int, rows: np.ndarray | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """The batches of steps `start_step` to `end_step - 1`, or some rows of each.

        Args:
          rows: of the whole batch, those that this process needs; only these images are read. None
            for all.

        Raises:
          BadDataError: too many images are bad, or all.
        """
        rows = np.arange(self.batch_size) if rows is None else rows
        dataset = self._dataset(start_step, end_step, rows)
        iterator = numpy_iterator(dataset)
        drawn, bad = 0, 0
        for step in range(start_step, end_step):
            try:
                batch = next(iterator)
            except tf.errors.OpError as error:
                number = tf.constant(step * self.batch_size + rows, tf.int64)
                index = self._locate(number)[1].numpy()
                raise BadDataError(
                    f"step {step}: {first_problem(self.source, index) or error.message}"
                ) from error
            drawn, bad = drawn + len(rows), bad + int(batch["replaced"].sum())
            if too_many_bad(bad, drawn, self.data.bad_share):
                raise BadDataError(
                    f"step {step}: {bad} of {drawn} images were bad, more than "
                    f"config.data.bad_share = {self.data.bad_share}"
                )
            yield batch

    def _dataset(self, start_step: int, end_step: int, rows: np.ndarray) -> tf.data.Dataset:
        per_call = calls_of(len(rows), self.source)
        calls_per_step = len(rows) // per_call
        rows_of_call = tf.constant(rows.reshape(calls_per_step, per_call), tf.int64)

        @graph
        def load(call: tf.Tensor) -> dict[str, tf.Tensor]:
            step, row = call // calls_per_step, call % calls_per_step
            number = step * self.batch_size + rows_of_call[row]
            epoch, index = self._locate(number)
            views, used = self._views(epoch, index)
            return views | {"number": number, "example_index": index, "used": used}

        @graph
        def add_rest(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            number, used, index = batch.pop("number"), batch.pop("used"), batch["example_index"]
            epoch, _ = self._locate(number)
            if self.needs.labels is not None:
                labels = tf.constant(self.source.labels, tf.int32)
                batch["label"] = tf.gather(labels, used)
            batch["replaced"] = used != index
            return batch | self._masks(number[0] // self.batch_size, epoch, index)

        dataset = tf.data.Dataset.range(start_step * calls_per_step, end_step * calls_per_step)
        dataset = dataset.map(load, **PARALLEL)
        if calls_per_step > 1:
            dataset = dataset.rebatch(len(rows), drop_remainder=True)
        return (
            dataset.map(add_rest, **PARALLEL).prefetch(_BATCHES_AHEAD).with_options(fixed_options())
        )

    def _views(self, epoch: tf.Tensor, index: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """All views of some examples: name -> pixels [n, H, W, C] or [n, V, H, W, C]; and the
        examples int64 [n] that they really show."""
        images: dict[str, list[tf.Tensor]] = {view.name: [] for view in self.needs.views}
        used = index
        crops = view_crops(self.needs.views, seed=self.seed, epoch=epoch)
        for number, (view, of_view, crop) in enumerate(crops):
            image, used = self.source.load(index, crop, view.size)
            if view.augmentations:
                most = np.iinfo(self.source.dtype).max
                changed = augment(
                    tf.cast(image, tf.float32) * np.float32(255 / most),
                    view.augmentations[of_view % len(view.augmentations)],
                    seed=self.seed,
                    epoch=epoch,
                    index=index,
                    view=number,
                )
                changed = tf.round(changed * np.float32(most / 255))
                image = tf.cast(tf.clip_by_value(changed, 0, most), image.dtype)
            images[view.name].append(image)
        views = {
            view.name: images[view.name][0]
            if view.number is None
            else tf.stack(images[view.name], axis=1)
            for view in self.needs.views
        }
        return views, used

    def _masks(self, step: tf.Tensor, epoch: tf.Tensor, index: tf.Tensor) -> dict[str, tf.Tensor]:
        masks = self.needs.masks
        if isinstance(masks, MultiBlock):
            return MaskSampler(masks, self.seed).draw(step, epoch, index)
        if isinstance(masks, RandomPatches):
            return draw_random_patches(masks, seed=self.seed, epoch=epoch, index=index)
        if isinstance(masks, MaskedBlocks):
            return draw_masked_blocks(masks, seed=self.seed, epoch=epoch, index=index)
        return {}

    def _locate(self, number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Epoch (scalar int64) and examples (int64 [n]) of images of the run, all of one batch.

        Args:
          number: int64 [n], counting the run's images from 0 on.
        """
        images_per_epoch = self.batch_size * self.steps_per_epoch
        epoch = number[0] // images_per_epoch  # a batch never spans two epochs
        index = tf.random.experimental.index_shuffle(
            number % images_per_epoch,
            seed=tf.stack([tf.constant(self.seed, tf.int64), epoch]),
            max_index=self.source.num_examples - 1,
        )
        return epoch, index
