"""What a configuration may take from the training images: how many, and their colours."""

import numpy as np

from jepa_jax.batch.pixels import normalize
from jepa_jax.config import DataConfig
from jepa_jax.config.derived import ImageFacts
from jepa_jax.data.pipeline import eval_batches
from jepa_jax.data.sources import Source, open_source
from jepa_jax.errors import StoppedRunError

_IMAGES = 1000  # spread evenly over the data: enough for the mean of each channel


def image_facts(data: DataConfig) -> ImageFacts:
    """Counts the training images, and takes mean and standard deviation over up to 1,000 of them.

    Bad images are left out: training replaces them, up to `data.bad_share`.

    Args:
      data: with as many values of `mean` as channels are wanted; none: as many as there are.

    Raises:
      UserError, StoppedRunError: as `open_source` and, if all images are bad, `eval_batches`.
    """
    source = open_source(data, "train")
    index = np.linspace(0, source.num_examples - 1, min(source.num_examples, _IMAGES)).astype(int)
    try:
        mean, std = _colours(data, source, index)
    except StoppedRunError:
        index = good_examples(source, index)
        if not len(index):
            raise
        mean, std = _colours(data, source, index)

    def rounded(values: np.ndarray) -> tuple[float, ...]:
        return tuple(round(float(value), 4) for value in values)

    return ImageFacts(source.num_examples, rounded(mean), rounded(std))


def good_examples(source: Source, index: np.ndarray) -> np.ndarray:
    """Of some examples, those whose images are good; each is read for that."""
    return index[[source.problem(int(i)) is None for i in index]]


def _colours(data: DataConfig, source: Source, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel."""
    total, squares, count = np.zeros(source.channels), np.zeros(source.channels), 0
    none = (0.0,) * source.channels, (1.0,) * source.channels
    for images in eval_batches(data, source, index=index, batch_size=50):  # [b, H, W, C]
        pixels = normalize(images, *none).reshape(-1, source.channels).astype(np.float64)
        total, squares = total + pixels.sum(0), squares + (pixels**2).sum(0)
        count += len(pixels)
    mean = total / count
    return mean, np.sqrt(np.maximum(squares / count - mean**2, 1e-4))  # 0 of black images
