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
    per_channel = (1,) * (images.ndim - 1) + (-1,)
    most = np.float32(np.iinfo(images.dtype).max)
    shift = np.array(mean, np.float32).reshape(per_channel)
    scale = np.array(std, np.float32).reshape(per_channel)
    return (images.astype(np.float32) / most - shift) / scale
