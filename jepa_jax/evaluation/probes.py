"""k-NN and linear probes of frozen features.

The hyper-parameter is chosen on a part of the training features; the probe is then fitted to all of
them, and the test features are used once, for the number that is reported.
"""

import contextlib
import dataclasses
import io
import logging
import time
import warnings
from collections.abc import Callable
from typing import Any

import joblib
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from jepa_jax.config import ProbeConfig
from jepa_jax.errors import UserError

# scikit-learn asks for the physical cores. Where lscpu can't tell (no /sys, in a chroot), joblib
# prints a traceback, but only the first time: now, unheard.
with warnings.catch_warnings(action="ignore"), contextlib.redirect_stderr(io.StringIO()):
    joblib.cpu_count(only_physical_cores=True)

log = logging.getLogger(__name__)

_MAX_ITERATIONS = 1000  # of L-BFGS, for the linear probe
_SLOW_SECONDS = 1.0
# Products of one step up to which a second thread costs more than it gives: on a machine with other
# work, threads that wait for each other make such a fit 15 to 90 times as long.
_ONE_THREAD = 1e8


@dataclasses.dataclass(frozen=True)
class LabelledFeatures:
    features: np.ndarray  # float32 [n, D]
    labels: np.ndarray  # int64 [n]
    standardised: bool = False  # already: the probe then leaves each column's variance as it is


def probe(
    config: ProbeConfig,
    train: LabelledFeatures,
    test: LabelledFeatures,
    *,
    on_slow_fit: Callable[[float, float], None] | None = None,
) -> dict[str, Any]:
    """Accuracy of a probe on the test features.

    Args:
      on_slow_fit: is called with a hyper-parameter and seconds, after each fit of over a second.

    Returns:
      accuracy: on the test features, 0..1.
      chosen: the hyper-parameter; of equally good ones the first.
      validation: hyper-parameter -> accuracy on the held-out part of the training features.

    Raises:
      UserError: the training images are too few for the configured probe.
    """
    rarest = int(np.unique(train.labels, return_counts=True)[1].min())
    if rarest * min(config.validation_fraction, 1 - config.validation_fraction) < 1:
        raise UserError(
            f"config.validation_fraction = {config.validation_fraction}: a class has only {rarest} "
            "training images, and needs at least one on either side"
        )
    fit_features, held_features, fit_labels, held_labels = train_test_split(
        train.features,
        train.labels,
        test_size=config.validation_fraction,
        random_state=config.seed,
        stratify=train.labels,
    )
    if config.protocol == "knn" and max(config.candidates) > len(fit_labels):
        raise UserError(
            f"config.candidates = {config.candidates}: there are only {len(fit_labels)} images to "
            "be neighbours"
        )

    def fit(value: float, part: LabelledFeatures) -> Pipeline:
        start = time.monotonic()
        classifier = _fit(config, value, part)
        seconds = time.monotonic() - start
        if on_slow_fit and seconds > _SLOW_SECONDS:
            on_slow_fit(value, seconds)
        return classifier

    part = LabelledFeatures(fit_features, fit_labels, train.standardised)
    validation = {
        value: float(fit(value, part).score(held_features, held_labels))
        for value in config.candidates
    }
    chosen = max(validation, key=lambda value: validation[value])
    classifier = fit(chosen, train)
    return {
        "accuracy": float(classifier.score(test.features, test.labels)),
        "chosen": chosen,
        "validation": validation,
    }


def knn_accuracy(train: LabelledFeatures, test: LabelledFeatures, *, neighbors: int) -> float:
    """Accuracy of k-NN with one k, for a look at a run that is still going on."""
    classifier = make_pipeline(
        StandardScaler(), KNeighborsClassifier(n_neighbors=neighbors, algorithm="brute")
    )
    classifier.fit(train.features, train.labels)
    return float(classifier.score(test.features, test.labels))


def _fit(config: ProbeConfig, value: float, train: LabelledFeatures) -> Pipeline:
    """The probe with one value of its hyper-parameter, on standardised features."""
    if config.protocol == "knn":
        classifier = KNeighborsClassifier(n_neighbors=int(value), algorithm="brute")
    else:
        classifier = LogisticRegression(C=value, tol=1e-3, max_iter=_MAX_ITERATIONS)
    scaler = "passthrough" if train.standardised else StandardScaler()
    pipeline = make_pipeline(scaler, classifier)
    products = train.features.size * len(np.unique(train.labels))  # of one step of L-BFGS
    one_thread = config.protocol == "linear" and products < _ONE_THREAD
    with (
        threadpool_limits(1 if one_thread else None),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        pipeline.fit(train.features, train.labels)
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            log.warning(
                "linear probe, C = %g: not converged in %d iterations", value, _MAX_ITERATIONS
            )
    return pipeline
