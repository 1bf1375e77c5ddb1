"""Images as they are in their files, and where their training crops lie."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from jepa_jax.batch.spec import View
from jepa_jax.data.crops import view_crops, whole_image
from jepa_jax.data.sources import Source


class Original(NamedTuple):
    """An image and boxes on it.

    Attributes:
      pixels: [h, w, C] of the whole image, made smaller or larger.
      boxes: (view's name, epoch) -> float64 [V, 4]: top, left, height and width of its crops, in
        those pixels.
    """

    pixels: np.ndarray
    boxes: dict[tuple[str, int], np.ndarray]


def original(
    source: Source,
    views: tuple[View, ...],
    *,
    index: int,
    epochs: range,
    seed: int,
    longest: int = 256,
) -> Original:
    """One whole image, and the crops of it that some epochs train on.

    Args:
      index: of the example; if its image is bad, it is the next good one that is shown.
      seed: of the run.
      longest: the longer side of the result, in pixels.
    """
    number, sizes = tf.constant([index], tf.int64), []

    everything = whole_image()

    def boxes_of(draws: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
        sizes.append((int(heights[0]), int(widths[0])))
        return everything.boxes(draws, heights, widths)

    source.load(number, everything._replace(boxes=boxes_of), (8, 8))  # only to know its size
    height, width = sizes[-1]
    scale = longest / max(height, width)
    shown = max(round(height * scale), 1), max(round(width * scale), 1)
    pixels = source.load(number, everything, shown)[0].numpy()[0]

    boxes: dict[tuple[str, int], np.ndarray] = {}
    for epoch in epochs:
        of_epoch: dict[str, list[np.ndarray]] = {}
        for view, _, crop in view_crops(views, seed=seed, epoch=epoch):
            draws = crop.draws(number).numpy()
            box = crop.boxes(draws, np.array([height]), np.array([width]))[0]
            of_epoch.setdefault(view.name, []).append(box * scale)
        boxes |= {(name, epoch): np.stack(found) for name, found in of_epoch.items()}
    return Original(pixels, boxes)
