"""What a batch must hold, as an objective declares it; and a stream of such batches.

`BatchSpec` is all that the data side knows of an objective, and `Stream` all that training knows of
data.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jepa_jax.batch.masks import MaskedBlocks, MultiBlock, RandomPatches
from jepa_jax.config import AugmentationConfig, DataConfig

Shapes = dict[str, jax.ShapeDtypeStruct]


class View(NamedTuple):
    """Random crops of one size of each image.

    Attributes:
      name: of the array in the batch.
      size: height, width in pixels.
      number: V crops, stacked: [B, V, H, W, C]; None: a single one, [B, H, W, C].
      crop_scale: share of the image's area.
      crop_aspect_ratio: width / height.
      augmentations: of each of the V crops, or one for all; none: crops alone.
      channels: C.
    """

    name: str
    size: tuple[int, int]
    number: int | None = None
    crop_scale: tuple[float, float] = (0.3, 1.0)
    crop_aspect_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    augmentations: tuple[AugmentationConfig, ...] = ()
    channels: int = 3

    def shape(self, batch_size: int) -> tuple[int, ...]:
        stacked = () if self.number is None else (self.number,)
        return (batch_size, *stacked, *self.size, self.channels)


def image_view(
    name: str,
    data: DataConfig,
    *,
    number: int | None = None,
    augmentations: tuple[AugmentationConfig, ...] = (),
) -> View:
    """Crops as `config.data` says."""
    return View(
        name,
        data.image_size,
        number,
        data.crop_scale,
        data.crop_aspect_ratio,
        augmentations,
        data.channels,
    )


class BatchSpec(NamedTuple):
    """What a batch must hold.

    Attributes:
      views: the first is what diagnostics look at, and what `masks` refer to.
      masks: patches to see and to predict, drawn for each example; None: none.
      labels: how many classes "label" int32 [B] tells apart, from 0 on; None: no labels.
    """

    views: tuple[View, ...]
    masks: MultiBlock | RandomPatches | MaskedBlocks | None = None
    labels: int | None = None

    def variants(self, batch_size: int, pixels: Any = np.uint8) -> tuple[tuple[Shapes, float], ...]:
        """The shapes that a batch can have, each with its share of the steps; few.

        Args:
          pixels: type of the images.
        """
        fixed: dict[str, tuple[tuple[int, ...], Any]] = {
            view.name: (view.shape(batch_size), pixels) for view in self.views
        }
        if self.labels:
            fixed["label"] = ((batch_size,), np.int32)
        of_masks = self.masks.variants(batch_size) if self.masks else (({}, 1.0),)
        return tuple(
            (
                {
                    name: jax.ShapeDtypeStruct(shape, dtype)
                    for name, (shape, dtype) in {
                        **fixed,
                        **{name: (shape, np.int32) for name, shape in masks.items()},
                    }.items()
                },
                share,
            )
            for masks, share in of_masks
        )


def first_view(spec: BatchSpec, batch: Mapping[str, Any]) -> Any:
    """One image of each example: [B, H, W, C], of the first view."""
    view = spec.views[0]
    images = batch[view.name]
    return images if view.number is None else images[:, 0]


class DataIdentity(NamedTuple):
    """What tells whether two sets of examples are the same, wherever they lie.

    Attributes:
      num_examples: how many.
      digest: of their names in their order, or of their contents where they have no names.
    """

    num_examples: int
    digest: str


class Stream(NamedTuple):
    """Batches as a function of the step.

    Attributes:
      identity: of the data set; batches are a function of it too.
      steps_per_epoch: whole batches in the data set.
      variants: step -> ((shapes of a batch, share of the steps), ...), that step's first.
      batches: (first step, end step, rows of the whole batch or None for all) -> one dictionary of
        arrays per step.
      counted: arrays bool [B] of a batch that stay on the host, name -> what it means where true.
    """

    identity: DataIdentity
    steps_per_epoch: int
    variants: Callable[[int], tuple[tuple[Shapes, float], ...]]
    batches: Callable[[int, int, np.ndarray | None], Iterator[dict[str, np.ndarray]]]
    counted: Mapping[str, str]
