"""What a configuration may take from the training images: how many, and their colours."""

import numpy as np

from jepa_jax.config import DataConfig
from jepa_jax.config.derived import ImageFacts
from jepa_jax.data.pipeline import eval_batches
from jepa_jax.data.sources import open_source

_IMAGES = 1000  # spread evenly over the data: enough for the mean of each channel


def image_facts(data: DataConfig) -> ImageFacts:
    """Counts the training images, and takes mean and standard deviation over up to 1,000 of them.

    Args:
      data: its `mean` and `std` must be 0 and 1, so that pixels come in 0..1.

    Raises:
      UserError, StoppedRunError: as `open_source` and `eval_batches`.
    """
    source = open_source(data, "train")
    index = np.linspace(0, source.num_examples - 1, min(source.num_examples, _IMAGES)).astype(int)
    total, squares, count = np.zeros(3), np.zeros(3), 0
    for images in eval_batches(data, source, index=index, batch_size=50):  # [b, H, W, 3]
        pixels = images.reshape(-1, 3).astype(np.float64)
        total, squares, count = (
            total + pixels.sum(0),
            squares + (pixels**2).sum(0),
            count + len(pixels),
        )
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-4))  # 0 of black images

    def three(values: np.ndarray) -> tuple[float, float, float]:
        red, green, blue = (round(float(value), 4) for value in values)
        return red, green, blue

    return ImageFacts(source.num_examples, three(mean), three(std))
