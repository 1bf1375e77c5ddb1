"""Linear heads by L-BFGS, streamed, against scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from jepa_jax.evaluation import logistic
from jepa_jax.evaluation.rows import Rows
from jepa_jax.evaluation.tasks import Task

RNG = np.random.default_rng(0)
X = (RNG.normal(size=(300, 6)) * 10.0 ** np.arange(-3, 3) + 2).astype(np.float32)
LOGITS = StandardScaler().fit_transform(X) @ RNG.normal(size=(6, 3))
CLASSES = (LOGITS + RNG.gumbel(size=LOGITS.shape)).argmax(1)
PARTS = Rows([X[:50], X[50:51], X[51:]])


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    monkeypatch.setattr(logistic, "_TOLERANCE", 1e-6)


@pytest.fixture(params=["held", "streamed"])
def blocks(request, monkeypatch):
    """Of 64 rows, so that the last is filled up; held on the device, or read each time."""
    monkeypatch.setattr(logistic, "_BLOCK_BYTES", 64 * 4 * 6)
    if request.param == "streamed":
        monkeypatch.setattr(logistic, "_HELD_BYTES", 0)


@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_classes_are_told_as_by_scikit_learn(blocks, strength):
    head = logistic.fit(Task("classification", 3), PARTS, CLASSES, strength=strength)
    scaler = StandardScaler().fit(X.astype(np.float64))
    theirs = LogisticRegression(C=strength, tol=1e-8, max_iter=5000)
    theirs.fit(scaler.transform(X), CLASSES)
    # The mean over classes of all logits is free.
    centred = head.kernel - head.kernel.mean(1, keepdims=True)
    expected = (theirs.coef_ - theirs.coef_.mean(0)).T
    np.testing.assert_allclose(centred, expected, atol=2e-4)
    ours = head(Rows([X]))
    expected = theirs.decision_function(scaler.transform(X))
    difference = ours - expected
    np.testing.assert_allclose(difference - difference.mean(1, keepdims=True), 0, atol=2e-3)


def test_each_of_several_labels_is_a_regression_of_its_own():
    labels = LOGITS + RNG.logistic(size=LOGITS.shape) > 0
    head = logistic.fit(Task("multi_label", 3), PARTS, labels, strength=0.5)
    scaled = StandardScaler().fit_transform(X.astype(np.float64))
    for k in range(3):
        theirs = LogisticRegression(C=0.5, tol=1e-8, max_iter=5000).fit(scaled, labels[:, k])
        np.testing.assert_allclose(head.kernel[:, k], theirs.coef_[0], atol=2e-3)
        np.testing.assert_allclose(head.bias[k], theirs.intercept_[0], atol=2e-3)


def test_numbers_are_told_by_ridge_regression_in_their_own_units():
    """Of numbers scaled to deviation 1, whose mean loss is half the squared error."""
    values = LOGITS[:, :2] * [3.0, 500.0] + [7.0, -100.0]
    head = logistic.fit(Task("regression", 2), PARTS, values, strength=0.02)
    scaled = StandardScaler().fit_transform(X.astype(np.float64))
    theirs = Ridge(alpha=1 / 0.02).fit(scaled, (values - values.mean(0)) / values.std(0))
    expected = theirs.predict(scaled) * values.std(0) + values.mean(0)
    np.testing.assert_allclose((head(PARTS) - expected) / values.std(0), 0, atol=1e-3)


def test_a_start_changes_the_way_and_not_the_end():
    task = Task("classification", 3)
    near = logistic.fit(task, PARTS, CLASSES, strength=0.1)
    cold = logistic.fit(task, PARTS, CLASSES, strength=1.0)
    warm = logistic.fit(task, PARTS, CLASSES, strength=1.0, start=near)
    np.testing.assert_allclose(warm(PARTS), cold(PARTS), atol=5e-3)
    assert np.abs(near(PARTS) - cold(PARTS)).max() > 0.1


def test_standardised_features_are_left_as_they_are():
    task = Task("classification", 3)
    own = logistic.fit(task, PARTS, CLASSES, strength=1.0, standardized=True)
    np.testing.assert_array_equal(own.mean, 0)
    np.testing.assert_array_equal(own.std, 1)


def test_a_fit_that_does_not_converge_is_told(monkeypatch, caplog):
    monkeypatch.setattr(logistic, "_MAX_ITERATIONS", 2)
    logistic.fit(Task("classification", 3), PARTS, CLASSES, strength=1.0)
    assert "linear probe, C = 1: not converged in 2 iterations" in caplog.text
