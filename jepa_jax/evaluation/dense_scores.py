"""What predictions for each pixel are worth: mIoU, RMSE, absolute relative error."""

from typing import Any, Literal

import numpy as np

from jepa_jax.evaluation.scores import interval

Kind = Literal["segmentation", "depth"]

# Sums over the pixels of each image that count, float64 [n, 3, K]. Of a segmentation for each class
# the pixels that are told rightly, those told to be of it, and those that are; of depth, with
# K = 1, the squared errors, the absolute errors divided by the distance, and 1 for each pixel.
Sums = np.ndarray


def dense_score(kind: Kind, sums: Sums, *, seed: int = 0) -> dict[str, Any]:
    """Measures over all pixels, and the 95 % bootstrap interval of the first, over the images.

    Args:
      sums: of the test images.
      seed: of the bootstrap.

    Returns:
      segmentation: miou, the mean of the classes' intersections over unions, which are summed over
        the images first (Everingham et al., 2015); per_class: those, None of a class that is
        neither told nor there; pixel_accuracy;
      depth: rmse, and abs_rel, the mean of |error| / distance (Eigen et al., 2014);
      and interval: (low, high) of the first.
    """
    total = sums.sum(axis=0)
    low_high = interval(lambda i: dense_measure(kind, sums[i]), len(sums), seed=seed)
    if kind == "depth":
        return {
            "rmse": dense_measure(kind, sums),
            "interval": low_high,
            "abs_rel": float(total[1, 0] / total[2, 0]),
        }
    return {
        "miou": dense_measure(kind, sums),
        "interval": low_high,
        "per_class": [None if np.isnan(x) else float(x) for x in _ious(total)],
        "pixel_accuracy": float(total[0].sum() / total[2].sum()),
    }


def dense_measure(kind: Kind, sums: Sums) -> float:
    """The first number of `dense_score` alone."""
    total = sums.sum(axis=0)
    if kind == "depth":
        return float(np.sqrt(total[0, 0] / total[2, 0]))
    return float(np.nanmean(_ious(total)))


def of_each_image(kind: Kind, sums: Sums) -> np.ndarray:
    """The same measure of every image by itself, float64 [n]: what a paired test compares."""
    return np.array([dense_measure(kind, one[None]) for one in sums])


def _ious(total: np.ndarray) -> np.ndarray:
    """Of each class [K]; NaN of one that is neither told nor there."""
    right, told, there = total
    union = told + there - right
    return np.where(union > 0, right / np.maximum(union, 1), np.nan)
