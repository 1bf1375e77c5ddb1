"""What predictions on test images are worth, with intervals, and whether two models differ."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
from sklearn.metrics import average_precision_score, confusion_matrix

from jepa_jax.evaluation.tasks import Task

_RESAMPLES = 1000
_LEVEL = 0.95
_SLOW_RESAMPLES = 200  # of measures that are no mean over images


def score(task: Task, outputs: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> dict[str, Any]:
    """Measures of predictions, and the 95 % bootstrap interval of the first.

    Args:
      outputs: [n, K]: the larger, the more likely; of a regression the numbers themselves.
      labels: see `Task`.
      seed: of the bootstrap.

    Returns:
      accuracy (classification), mean_average_precision (multi_label) or rmse (regression); and
        interval: (low, high) of it;
      per_example: [n], see the function of this name;
      classification: top5, where there are more than five classes; per_class: accuracy of each
        class, None of one without test images; confusion [K][K]: rows are the true classes;
      multi_label: per_class: average precision of each label, None of one that no image has;
      regression: r2, the share of the variance that is explained, averaged over the numbers.
    """
    n, of_each = len(labels), per_example(task, outputs, labels)
    if task.kind == "classification":
        right = of_each.astype(np.float64)
        confusion = confusion_matrix(labels, outputs.argmax(1), labels=np.arange(task.outputs))
        found: dict[str, Any] = {
            "accuracy": float(right.mean()),
            "interval": interval(lambda i: right[i].mean(), n, seed=seed),
            "per_class": [
                float(row[i] / row.sum()) if row.sum() else None for i, row in enumerate(confusion)
            ],
            "confusion": confusion.tolist(),
            "per_example": of_each,
        }
        if task.outputs > 5:
            found["top5"] = top_k(outputs, labels, 5)
        return found
    if task.kind == "multi_label":
        precision = average_precisions(outputs, labels)
        return {
            "mean_average_precision": _mean_of_known(precision),
            "interval": interval(
                lambda i: _mean_of_known(average_precisions(outputs[i], labels[i])),
                n,
                seed=seed,
                resamples=_SLOW_RESAMPLES,
            ),
            "per_class": [None if np.isnan(p) else float(p) for p in precision],
            "per_example": of_each,
        }
    squared = of_each  # [n]
    unexplained = np.mean((outputs.astype(np.float64) - labels) ** 2, axis=0)
    variance = np.maximum(labels.astype(np.float64).var(axis=0), 1e-12)
    return {
        "rmse": float(np.sqrt(squared.mean())),
        "interval": interval(lambda i: np.sqrt(squared[i].mean()), n, seed=seed),
        "r2": float(np.mean(1 - unexplained / variance)),
        "per_example": of_each,
    }


MEASURE = {  # of which task which number is the headline
    "classification": "accuracy",
    "multi_label": "mean_average_precision",
    "regression": "rmse",
    "segmentation": "miou",
    "depth": "rmse",
}
LOWER_IS_BETTER = ("rmse",)


def measure(task: Task, outputs: np.ndarray, labels: np.ndarray) -> float:
    """The headline number alone; see `score`."""
    if task.kind == "classification":
        return float(correct(outputs, labels).mean())
    if task.kind == "multi_label":
        return _mean_of_known(average_precisions(outputs, labels))
    return float(np.sqrt(np.mean((outputs.astype(np.float64) - labels) ** 2)))


def correct(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """bool [n]: whether the class with the largest output is the right one."""
    return outputs.argmax(axis=1) == labels


def top_k(outputs: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Share of the examples whose class is among the k with the largest outputs.

    Of equal outputs the first classes count as larger.
    """
    own = outputs[np.arange(len(labels)), labels][:, None]  # [n, 1]
    earlier = np.arange(outputs.shape[1])[None] < labels[:, None]
    ahead = (outputs > own) | ((outputs == own) & earlier)
    return float(np.mean(ahead.sum(axis=1) < k))


def average_precisions(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Average precision of each label [K]; NaN for one that no example has."""
    return np.array(
        [
            average_precision_score(labels[:, k], outputs[:, k]) if labels[:, k].any() else np.nan
            for k in range(labels.shape[1])
        ]
    )


def _mean_of_known(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0


def interval(
    statistic: Callable[[np.ndarray], float],
    n: int,
    *,
    seed: int = 0,
    resamples: int = _RESAMPLES,
) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval (Efron, 1979) over n test examples.

    Args:
      statistic: of the examples with these numbers, some of them several times.
    """
    rng = np.random.default_rng(seed)
    drawn = [statistic(rng.integers(0, n, n)) for _ in range(resamples)]
    low, high = np.quantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def paired(first: np.ndarray, second: np.ndarray, *, seed: int = 0) -> dict[str, Any]:
    """Whether two models differ on the same test examples.

    Args:
      first, second: [n], of each example whether it is right (bool), or its error.

    Returns:
      difference: mean of the first less that of the second; interval: 95 %, by a bootstrap of the
        pairs; p_value: of the hypothesis that there is none, McNemar's exact test where the values
        are bool, Wilcoxon's signed-rank test of errors; test: its name.
    """
    difference = first.astype(np.float64) - second.astype(np.float64)
    if first.dtype == bool:
        test, wins, losses = "McNemar", int(np.sum(first & ~second)), int(np.sum(second & ~first))
        p = scipy.stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    else:
        test = "Wilcoxon"
        p = scipy.stats.wilcoxon(difference).pvalue if difference.any() else 1.0
    return {
        "difference": float(difference.mean()),
        "interval": interval(lambda i: difference[i].mean(), len(difference), seed=seed),
        "p_value": float(p),
        "test": test,
    }


def per_example(task: Task, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of each example [n] what `paired` compares: whether it is right, or its squared error.

    Of several labels: the share that is told right at a threshold of 1/2 is no average precision,
    so it is the squared error of the probabilities (Brier, 1950). Outputs [n] of a dense probe are
    a number for each image already.
    """
    if outputs.ndim == 1:
        return outputs.astype(np.float64)
    if task.kind == "classification":
        return correct(outputs, labels)
    return np.mean((outputs.astype(np.float64) - labels) ** 2, axis=1)


def over_splits(results: Sequence[Mapping[str, Any]], *, seed: int = 0) -> dict[str, Any]:
    """One row of several training splits, of what `score` gave for each on the same test images.

    Returns:
      the measure, averaged over the splits; std: its standard deviation (n - 1; None of one split);
      splits: its values; interval: over the test images, of the mean; per_example: averaged; top5:
      averaged, where there is one.
    """
    measure = measured(results[0])
    values = [float(one[measure]) for one in results]
    of_each = np.mean([one["per_example"] for one in results], axis=0)
    found: dict[str, Any] = {measure: float(np.mean(values))}
    if measure == "accuracy":
        found["interval"] = interval(lambda i: of_each[i].mean(), len(of_each), seed=seed)
    else:  # no mean over images: the mean of the splits' own bounds
        low, high = np.mean([one["interval"] for one in results], axis=0)
        found["interval"] = (float(low), float(high))
    if "top5" in results[0]:
        found["top5"] = float(np.mean([one["top5"] for one in results]))
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return found | {"std": std, "splits": values, "per_example": of_each}


def measured(scores: Mapping[str, Any]) -> str:
    """Which headline number `score` gave."""
    return next(name for name in MEASURE.values() if name in scores)
