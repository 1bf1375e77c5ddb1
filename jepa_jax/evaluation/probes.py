"""k-NN and linear probes of frozen features.

The hyper-parameter is chosen on a part of the training features; the probe is then fitted to all of
them, and the test features are used once, for the number that is reported.
"""

import dataclasses
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from jepa_jax.config import ProbeConfig


@dataclasses.dataclass(frozen=True)
class LabelledFeatures:
    features: np.ndarray  # float32 [n, D]
    labels: np.ndarray  # int64 [n]


def probe(
    config: ProbeConfig, train: LabelledFeatures, test: LabelledFeatures
) -> dict[str, Any]:
    """Accuracy of a probe on the test features.

    Returns:
      accuracy: on the test features, 0..1.
      chosen: the hyper-parameter.
      validation: hyper-parameter -> accuracy on the held-out part of the training features.
    """
    fit_features, held_features, fit_labels, held_labels = train_test_split(
        train.features,
        train.labels,
        test_size=config.validation_fraction,
        random_state=config.seed,
        stratify=train.labels,
    )
    values = config.neighbors if config.protocol == "knn" else config.inverse_regularization
    validation = {
        value: float(
            _classifier(config, value)
            .fit(fit_features, fit_labels)
            .score(held_features, held_labels)
        )
        for value in values
    }
    chosen = max(validation, key=lambda value: validation[value])
    classifier = _classifier(config, chosen).fit(train.features, train.labels)
    return {
        "accuracy": float(classifier.score(test.features, test.labels)),
        "chosen": chosen,
        "validation": validation,
    }


def _classifier(config: ProbeConfig, value: float) -> Pipeline:
    """The probe with one value of its hyper-parameter, on standardised features."""
    if config.protocol == "knn":
        classifier = KNeighborsClassifier(n_neighbors=value, algorithm="brute")
    else:
        classifier = LogisticRegression(C=value, max_iter=config.max_iterations)
    return make_pipeline(StandardScaler(), classifier)
