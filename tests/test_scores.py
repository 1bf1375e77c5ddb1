"""Measures, intervals and paired tests, each against a statement of its own."""

import numpy as np
import pytest
import scipy.stats

from jepa_jax.evaluation.scores import interval, measure, paired, per_example, score, top_k
from jepa_jax.evaluation.tasks import Task, task_of

RNG = np.random.default_rng(0)


def test_accuracy_top_five_classes_and_confusion_by_hand():
    outputs = np.round(RNG.normal(size=(60, 8)), 1)  # with equal ones
    labels = np.append(RNG.integers(0, 7, 59), 2)  # no image of the last class
    task = task_of(labels, np.array([7]))
    assert task == Task("classification", 8)
    found = score(task, outputs, labels)
    right, fives, confusion = [], [], np.zeros((8, 8), int)
    for row, label in zip(outputs, labels, strict=True):
        order = sorted(range(8), key=lambda k: (-row[k], k))
        right.append(order[0] == label)
        fives.append(label in order[:5])
        confusion[label, order[0]] += 1
    assert found["accuracy"] == np.mean(right) == measure(task, outputs, labels)
    assert found["top5"] == np.mean(fives)
    assert top_k(outputs, labels, 1) == np.mean(right)
    assert found["confusion"] == confusion.tolist()
    for k, own in enumerate(found["per_class"]):
        of_class = [r for r, label in zip(right, labels, strict=True) if label == k]
        assert own == (pytest.approx(np.mean(of_class)) if of_class else None)


def test_mean_average_precision_is_that_of_the_ranked_images():
    outputs, labels = RNG.normal(size=(40, 3)), RNG.random((40, 3)) < 0.3
    labels[:, 2] = False  # of a label that no image has there is no precision
    task = task_of(labels)
    found = score(task, outputs, labels)

    def average_precision(values, has):
        hits, total = 0, 0.0
        for place, i in enumerate(np.argsort(-values), start=1):
            if has[i]:
                hits += 1
                total += hits / place
        return total / hits

    expected = [average_precision(outputs[:, k], labels[:, k]) for k in range(2)]
    assert found["per_class"] == [*(pytest.approx(e) for e in expected), None]
    assert found["mean_average_precision"] == pytest.approx(np.mean(expected))
    low, high = found["interval"]
    assert low < found["mean_average_precision"] < high


def test_errors_of_numbers_and_the_variance_that_is_explained():
    labels = RNG.normal(size=(50, 2)) * [1.0, 10.0]
    outputs = labels + RNG.normal(size=(50, 2))
    found = score(task_of(labels), outputs, labels)
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean((outputs - labels) ** 2)))
    explained = [
        1
        - np.sum((outputs[:, k] - labels[:, k]) ** 2) / np.sum((labels - labels.mean(0))[:, k] ** 2)
        for k in range(2)
    ]
    assert found["r2"] == pytest.approx(np.mean(explained))


def test_the_interval_is_that_of_the_binomial_distribution():
    right = (np.arange(400) < 300).astype(float)
    low, high = interval(lambda i: right[i].mean(), 400)
    expected = scipy.stats.binom(400, 0.75).ppf([0.025, 0.975]) / 400
    np.testing.assert_allclose((low, high), expected, atol=0.01)
    assert (low, high) == interval(lambda i: right[i].mean(), 400)
    assert (low, high) != interval(lambda i: right[i].mean(), 400, seed=1)


def test_two_models_are_compared_on_the_same_images():
    """McNemar's exact test: of the images that one alone gets right, how many it is."""
    first, second = np.zeros(100, bool), np.zeros(100, bool)
    first[:60], second[10:55] = True, True  # 15 that the first alone gets right, none the other
    found = paired(first, second)
    assert found["difference"] == pytest.approx(0.15)
    assert found["p_value"] == pytest.approx(2 * 0.5**15)
    assert found["test"] == "McNemar"
    assert 0 < found["interval"][0] < 0.15 < found["interval"][1]
    assert paired(first, first)["p_value"] == 1.0
    errors = per_example(Task("regression", 1), np.ones((30, 1)), np.zeros((30, 1)))
    lower = paired(errors * RNG.random(30), errors)
    assert lower["test"] == "Wilcoxon"
    assert lower["difference"] < 0
    assert lower["p_value"] < 1e-4
