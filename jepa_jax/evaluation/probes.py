"""k-NN and linear probes of frozen features.

The hyper-parameter is chosen on a part of the training features; the probe is then fitted to all of
them, and the test features are used once, for the numbers that are reported.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.model_selection import train_test_split

from jepa_jax.config import KnnConfig, LinearConfig
from jepa_jax.config.probe_fields import ProbeFields
from jepa_jax.errors import UserError
from jepa_jax.evaluation import knn, logistic
from jepa_jax.evaluation.rows import Rows
from jepa_jax.evaluation.scores import LOWER_IS_BETTER, MEASURE, measure, score
from jepa_jax.evaluation.tasks import Task, softmax, task_of

_SLOW_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class LabelledFeatures:
    """Features of images, and what is to be told from them.

    Attributes:
      features: float32 [n, D], or `Rows` that lie in files.
      labels: int64 [n]; bool [n, K]; or float [n, K]; see `tasks.Task`.
      standardised: already: the probe then leaves each column's variance as it is.
    """

    features: np.ndarray | Rows
    labels: np.ndarray
    standardised: bool = False

    @property
    def rows(self) -> Rows:
        return self.features if isinstance(self.features, Rows) else Rows([self.features])

    def take(self, index: np.ndarray) -> "LabelledFeatures":
        """Some of the images, by number, ascending."""
        return LabelledFeatures(self.rows.take(index), self.labels[index], self.standardised)


def probe(
    config: KnnConfig | LinearConfig,
    train: LabelledFeatures,
    test: LabelledFeatures,
    *,
    on_slow_fit: Callable[[float, float], None] | None = None,
) -> dict[str, Any]:
    """What a probe tells of the test images.

    Args:
      on_slow_fit: is called with a hyper-parameter and seconds, after each fit of over a second.

    Returns:
      what `scores.score` gives, the first of which is the accuracy of a classification, 0..1;
      chosen: the hyper-parameter; of equally good ones the first;
      validation: hyper-parameter -> the same measure on the held-out part of the training features;
        empty where there is but one to choose.

    Raises:
      UserError: the training images are too few for the configured probe.
    """
    task = task_of(train.labels, test.labels)
    predict = _predict_knn if isinstance(config, KnnConfig) else _predict_linear
    ways = _ways(config)
    validation: dict[Any, float] = {}
    chosen = next(iter(ways))
    if len(ways) > 1:
        fit, held = split_training(config, task, train.labels)
        _check_neighbours(config, len(fit))
        of_ways = predict(config, task, train.take(fit), train.take(held), ways, on_slow_fit)
        validation = {name: measure(task, of_ways[name], train.labels[held]) for name in ways}
        sign = -1 if MEASURE[task.kind] in LOWER_IS_BETTER else 1
        chosen = max(validation, key=lambda name: sign * validation[name])
    _check_neighbours(config, len(train.labels))
    outputs = predict(config, task, train, test, {chosen: ways[chosen]}, on_slow_fit)[chosen]
    return {
        **score(task, outputs, test.labels, seed=config.seed),
        "chosen": chosen,
        "validation": validation,
    }


def check_probe(config: KnnConfig | LinearConfig, labels: np.ndarray) -> None:
    """Refuses training labels that the probe can't be fitted to, before there are features.

    Raises:
      UserError: as `probe`; or all are of one class.
    """
    task = task_of(labels)
    if task.kind == "classification" and len(np.unique(labels)) < 2:
        raise UserError(
            f"config.low_shot: the {len(labels)} images of a split are all of one class; a probe "
            "needs at least two"
        )
    if len(_ways(config)) > 1:
        _check_neighbours(config, len(split_training(config, task, labels)[0]))
    _check_neighbours(config, len(labels))


def _ways(config: KnnConfig | LinearConfig) -> dict[Any, Any]:
    """The hyper-parameters to choose from: name -> value."""
    if isinstance(config, LinearConfig):
        return {value: value for value in config.candidates}
    if len(config.votes) == 1:  # then k alone is a name
        return {k: (config.votes[0], int(k)) for k in config.candidates}
    return {f"{vote} {k:g}": (vote, int(k)) for vote in config.votes for k in config.candidates}


def split_training(
    config: ProbeFields, task: Task, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the training images to fit to, and of those to choose with; ascending.

    Both have all classes. Heads trained by gradient can do without: of iNaturalist's classes some
    have two images.

    Raises:
      UserError: a class has too few, or they all have.
    """
    classes = task.kind == "classification"
    share = min(config.validation_fraction, 1 - config.validation_fraction)
    if classes and not isinstance(config, KnnConfig | LinearConfig):
        classes = share * np.unique(labels, return_counts=True)[1].min() >= 1
    rarest = int(np.unique(labels, return_counts=True)[1].min()) if classes else len(labels)
    if rarest * share < 1:
        raise UserError(
            f"config.validation_fraction = {config.validation_fraction}: "
            f"{'a class has' if classes else 'there are'} only {rarest} training "
            f"image{'s' * (rarest != 1)}, and it needs at least one on either side"
        )
    fit, held = train_test_split(
        np.arange(len(labels)),
        test_size=config.validation_fraction,
        random_state=config.seed,
        stratify=labels if classes else None,
    )
    return np.sort(fit), np.sort(held)


def _check_neighbours(config: KnnConfig | LinearConfig, count: int) -> None:
    if isinstance(config, KnnConfig) and max(config.candidates) > count:
        raise UserError(
            f"config.candidates = {config.candidates}: there are only {count} images to be "
            "neighbours"
        )


def _predict_knn(
    config: Any,
    task: Task,
    train: LabelledFeatures,
    test: LabelledFeatures,
    ways: dict[Any, Any],
    on_slow_fit: Callable[[float, float], None] | None,
) -> dict[Any, np.ndarray]:
    del on_slow_fit  # one search for all
    found = knn.predict(
        task,
        train.rows,
        train.labels,
        test.rows,
        ways=list(ways.values()),
        metric=config.metric,
        standardize=config.standardize and not train.standardised,
        temperature=config.temperature,
    )
    return {name: found[way] for name, way in ways.items()}


def _predict_linear(
    config: Any,
    task: Task,
    train: LabelledFeatures,
    test: LabelledFeatures,
    ways: dict[Any, Any],
    on_slow_fit: Callable[[float, float], None] | None,
) -> dict[Any, np.ndarray]:
    del config
    outputs, head = {}, None
    for name, strength in sorted(ways.items(), key=lambda way: way[1]):
        start = time.monotonic()
        # The solution for the next weaker term is near: it is where the search begins.
        head = logistic.fit(
            task,
            train.rows,
            train.labels,
            strength=strength,
            standardized=train.standardised,
            start=head,
        )
        seconds = time.monotonic() - start
        if on_slow_fit and seconds > _SLOW_SECONDS:
            on_slow_fit(strength, seconds)
        outputs[name] = softmax(task, head(test.rows))
    return outputs


def knn_accuracy(train: LabelledFeatures, test: LabelledFeatures, *, neighbors: int) -> float:
    """Accuracy of k-NN with one k, for a look at a run that is still going on."""
    config = KnnConfig(candidates=(float(neighbors),))
    ways = {neighbors: ("majority", neighbors)}
    task = task_of(train.labels, test.labels)
    return measure(
        task, _predict_knn(config, task, train, test, ways, None)[neighbors], test.labels
    )
