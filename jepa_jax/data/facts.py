"""What a configuration may take from the training images: how many, and their colours."""

import numpy as np

from jepa_jax.batch.pixels import normalize
from jepa_jax.config import DataConfig
from jepa_jax.config.derived import ImageFacts
from jepa_jax.data.pipeline import eval_batches
from jepa_jax.data.sources import open_source

_IMAGES = 1000  # spread evenly over the data: enough for the mean of each channel


def image_facts(data: DataConfig) -> ImageFacts:
    """Counts the training images, and takes mean and standard deviation over up to 1,000 of them.

    Args:
      data: with as many values of `mean` as channels are wanted; none: as many as there are.

    Raises:
      UserError, StoppedRunError: as `open_source` and `eval_batches`.
    """
    source = open_source(data, "train")
    index = np.linspace(0, source.num_examples - 1, min(source.num_examples, _IMAGES)).astype(int)
    total, squares, count = np.zeros(source.channels), np.zeros(source.channels), 0
    none = (0.0,) * source.channels, (1.0,) * source.channels
    bad, start = list[int](), 0
    for images in eval_batches(data, source, index=index, batch_size=50, bad=bad):  # [b, H, W, C]
        good = ~np.isin(index[start : start + len(images)], bad)
        start += len(images)
        pixels = normalize(images[good], *none).reshape(-1, source.channels).astype(np.float64)
        total, squares = total + pixels.sum(0), squares + (pixels**2).sum(0)
        count += len(pixels)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-4))  # 0 of black images

    def rounded(values: np.ndarray) -> tuple[float, ...]:
        return tuple(round(float(value), 4) for value in values)

    return ImageFacts(source.num_examples, rounded(mean), rounded(std))
