"""Nearest neighbours, block by block, against scikit-learn; and features that lie in parts."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor, NearestNeighbors

from jepa_jax.evaluation import knn
from jepa_jax.evaluation.rows import Rows, moments
from jepa_jax.evaluation.tasks import Task

RNG = np.random.default_rng(0)
KNOWN = (RNG.normal(size=(500, 12)) * np.linspace(0.1, 3, 12) + 1).astype(np.float32)
ASKED = (RNG.normal(size=(70, 12)) * np.linspace(0.1, 3, 12) + 1).astype(np.float32)
LABELS = RNG.integers(0, 5, 500)
CLASSES = Task("classification", 5)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(knn, "_QUERIES", 32)
    monkeypatch.setattr(knn, "_REFERENCES", 64)


@pytest.mark.parametrize(("metric", "standardize"), [("euclidean", True), ("cosine", False)])
def test_the_nearest_are_those_of_scikit_learn_in_any_blocks(small_blocks, metric, standardize):
    known, asked = KNOWN.astype(np.float64), ASKED.astype(np.float64)
    if standardize:
        mean, std = known.mean(0), known.std(0)
        known, asked = (known - mean) / std, (asked - mean) / std
    search = NearestNeighbors(n_neighbors=20, metric=metric).fit(known)
    distance, expected = search.kneighbors(asked)
    parts = Rows([KNOWN[:100], KNOWN[100:130], KNOWN[130:]])
    similarity, index = knn.nearest(
        parts, Rows([ASKED]), k=20, metric=metric, standardize=standardize
    )
    np.testing.assert_array_equal(index, expected)
    if metric == "cosine":
        np.testing.assert_allclose(similarity, 1 - distance, atol=1e-5)


def test_of_equally_near_ones_the_first_counts_whatever_the_blocks(small_blocks):
    known = Rows([np.tile(np.float32([[1, 0], [0, 1], [1, 0]]), (50, 1))])
    asked = Rows([np.float32([[2, 0]])])
    _, index = knn.nearest(known, asked, k=5, metric="cosine", standardize=False)
    np.testing.assert_array_equal(index[0], [0, 2, 3, 5, 6])


@pytest.mark.parametrize("k", [1, 7, 20])
def test_votes_are_those_of_scikit_learn(k):
    ways = [("majority", 1), ("majority", 7), ("weighted", 7), ("majority", 20), ("weighted", 20)]
    found = knn.predict(
        *(CLASSES, Rows([KNOWN]), LABELS, Rows([ASKED])),
        ways=[*ways, ("weighted", 1)],
        metric="cosine",
        standardize=False,
        temperature=0.07,
    )
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (KNOWN, ASKED)]
    majority = KNeighborsClassifier(k, metric="cosine").fit(KNOWN, LABELS)
    np.testing.assert_allclose(found["majority", k], majority.predict_proba(ASKED), atol=1e-6)

    def weigh(distance):
        return softmax((1 - distance) / 0.07, axis=1)

    weighted = KNeighborsClassifier(k, metric="cosine", weights=weigh).fit(unit[0], LABELS)
    np.testing.assert_allclose(found["weighted", k], weighted.predict_proba(unit[1]), atol=1e-4)


def test_numbers_are_told_as_the_mean_of_the_neighbours():
    values = RNG.normal(size=(500, 2))
    found = knn.predict(
        *(Task("regression", 2), Rows([KNOWN]), values, Rows([ASKED])),
        ways=[("majority", 9)],
        metric="euclidean",
        standardize=False,
        temperature=1.0,
    )["majority", 9]
    expected = KNeighborsRegressor(9).fit(KNOWN, values).predict(ASKED)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_rows_are_the_same_in_one_part_or_many_and_some_can_be_taken():
    parts = [KNOWN[:7], KNOWN[7:8], KNOWN[8:300], KNOWN[300:]]
    halves = Rows([part.astype(np.float16) for part in parts])
    rows = Rows(parts)
    assert rows.shape == (500, 12)
    for size in (1, 9, 500, 1000):
        np.testing.assert_array_equal(np.concatenate(list(rows.blocks(size))), KNOWN)
    np.testing.assert_allclose(halves.all(), KNOWN, atol=1e-2)
    index = np.array([0, 6, 7, 299, 300, 499])
    np.testing.assert_array_equal(rows.take(index).all(), KNOWN[index])
    np.testing.assert_array_equal(rows.take(index).take(np.array([1, 4])).all(), KNOWN[[6, 300]])
    mean, std = moments(rows, block=64)
    np.testing.assert_allclose(mean, KNOWN.astype(np.float64).mean(0), rtol=1e-6)
    np.testing.assert_allclose(std, KNOWN.astype(np.float64).std(0), rtol=1e-6)
    constant = moments(Rows([np.full((9, 2), 0.1, np.float32)]))[1]
    np.testing.assert_array_equal(constant, [1, 1])
