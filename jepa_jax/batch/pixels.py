"""Pixels travel as integers, and become numbers around zero where they are needed."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def normalize(images: Any, mean: Sequence[float], std: Sequence[float]) -> Any:
    """Pixels uint8 or uint16 [..., C] as float32 of zero mean and unit variance.

    Args:
      images: of NumPy or JAX; floating-point ones are taken as normalised already.
      mean, std: of each channel, pixels in 0..1.
    """
    if np.issubdtype(images.dtype, np.floating):
        return images
    return standardize(images.astype(np.float32) / most_of(images), mean, std)


def standardize(images: Any, mean: Sequence[float], std: Sequence[float]) -> Any:
    """The same of pixels that are float32 in 0..1 already."""
    per_channel = (1,) * (images.ndim - 1) + (-1,)
    shift = np.array(mean, np.float32).reshape(per_channel)
    scale = np.array(std, np.float32).reshape(per_channel)
    return (images - shift) / scale


def most_of(images: Any) -> np.float32:
    """The value of white: 255 or 65,535."""
    return np.float32(np.iinfo(images.dtype).max)
