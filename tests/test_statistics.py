"""Batch statistics against float64 NumPy, written from the papers' formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_jax.models.heads import BatchNorm, ProjectionHead
from jepa_jax.objectives.statistics import covariance_term, sigreg, sinkhorn, variance_term


@pytest.fixture(params=[(12, 5), (4, 9)], ids=["tall", "wide"])
def features(request):
    """Some features vary less than the variance term asks for, and some more."""
    rng = np.random.default_rng(0)
    n, D = request.param
    return rng.normal(size=(n, D)) @ rng.normal(size=(D, D)) * rng.uniform(0.05, 1.5, D)


def test_the_variance_term_is_the_mean_shortfall_of_the_standard_deviations(features):
    n = len(features)
    shortfall = []
    for column in features.T:
        variance = np.sum((column - column.mean()) ** 2) / (n - 1)
        shortfall.append(max(0.0, 1.0 - np.sqrt(variance + 1e-4)))
    assert min(shortfall) == 0.0 or max(shortfall) > 0.0
    ours = variance_term(jnp.asarray(features, jnp.float32))
    np.testing.assert_allclose(ours, np.mean(shortfall), rtol=1e-5)


def test_the_variance_term_of_a_collapsed_batch_is_1_less_the_root_of_epsilon():
    np.testing.assert_allclose(variance_term(jnp.ones((8, 3))), 1.0 - 1e-2, rtol=1e-6)


def test_the_covariance_term_is_the_sum_of_squares_off_the_diagonal(features):
    n, D = features.shape
    expected = 0.0
    for i in range(D):
        for j in range(D):
            if i != j:
                a, b = (features[:, k] - features[:, k].mean() for k in (i, j))
                expected += (np.sum(a * b) / (n - 1)) ** 2
    ours = covariance_term(jnp.asarray(features, jnp.float32))
    np.testing.assert_allclose(ours, expected / D, rtol=1e-5)


def test_the_covariance_term_can_be_the_mean_over_pairs_of_features(features):
    _, D = features.shape
    z = jnp.asarray(features, jnp.float32)
    pairs = np.cov(features, rowvar=False)[~np.eye(D, dtype=bool)]
    np.testing.assert_allclose(covariance_term(z, divisor="pairs"), np.mean(pairs**2), rtol=1e-5)


def sinkhorn_by_hand(scores, epsilon, iterations):
    """Alternate scaling of a K x n matrix, as the paper has it, in float64."""
    q = np.exp(np.asarray(scores, np.float64).T / epsilon)  # [K, n]
    K, n = q.shape
    q /= q.sum()
    for _ in range(iterations):
        for k in range(K):
            q[k] /= q[k].sum() * K
        for i in range(n):
            q[:, i] /= q[:, i].sum() * n
    return q.T * n


@pytest.mark.parametrize("iterations", [1, 3])
def test_sinkhorn_scales_columns_and_rows_in_turn(iterations):
    scores = np.random.default_rng(1).uniform(-1, 1, (10, 4)).astype(np.float32)
    ours = sinkhorn(jnp.asarray(scores), epsilon=0.05, iterations=iterations)
    np.testing.assert_allclose(
        ours, sinkhorn_by_hand(scores, 0.05, iterations), rtol=1e-4, atol=1e-7
    )


def test_sinkhorn_uses_all_prototypes_equally():
    """Even where all examples prefer the same one."""
    rng = np.random.default_rng(2)
    scores = jnp.asarray(rng.uniform(-0.2, 0.2, (12, 3)) + np.array([0.5, 0.0, 0.0]), jnp.float32)
    q = sinkhorn(scores, epsilon=0.05, iterations=100)
    np.testing.assert_allclose(q.sum(axis=1), np.ones(12), rtol=1e-5)
    np.testing.assert_allclose(q.sum(axis=0), np.full(3, 4.0), rtol=1e-2)


def test_batch_norm_takes_the_statistics_of_its_batch():
    x = np.random.default_rng(3).normal(3.0, 2.0, (6, 4))
    params = {"scale": jnp.array([1.0, 2.0, 0.5, 1.0]), "bias": jnp.array([0.0, 1.0, 0.0, -1.0])}
    scale, bias = (np.asarray(params[name])[None] for name in ("scale", "bias"))
    expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * scale + bias
    ours = BatchNorm().apply({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_a_projection_head_is_dense_norm_relu_then_dense():
    x = np.random.default_rng(4).normal(size=(7, 3)).astype(np.float32)
    head = ProjectionHead((5, 6, 2))
    params = head.init(jax.random.key(0), jnp.asarray(x))["params"]
    assert set(params) == {"fc1", "norm1", "fc2", "norm2", "fc3"}
    assert "bias" not in params["fc3"]
    y = np.asarray(x, np.float64)
    for layer in ("1", "2"):
        dense = params[f"fc{layer}"]
        y = y @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
        y = np.maximum((y - y.mean(0)) / np.sqrt(y.var(0) + 1e-5), 0)
    np.testing.assert_allclose(
        head.apply({"params": params}, jnp.asarray(x)),
        y @ np.asarray(params["fc3"]["kernel"]),
        atol=1e-5,
    )


def sigreg_by_hand(z, directions):
    """The statistic from its integral, by the trapezoid rule on all of [-3, 3], in float64."""
    n, t = len(z), np.linspace(-3, 3, 33)
    total = 0.0
    for direction in directions.T:
        x = z @ (direction / np.linalg.norm(direction))
        empirical = np.array([np.mean(np.exp(1j * s * x)) for s in t])
        integrand = np.abs(empirical - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2)
        total += n * np.trapezoid(integrand, t)
    return total / directions.shape[1]


def test_sigreg_is_the_weighted_distance_of_the_characteristic_functions(features):
    key = jax.random.key(3)
    directions = jax.random.normal(key, (features.shape[1], 7))
    ours = sigreg(jnp.asarray(features, jnp.float32), key, num_directions=7)
    expected = sigreg_by_hand(features, np.asarray(directions, np.float64))
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


@pytest.mark.parametrize("n", [64, 256])
def test_sigreg_of_a_normal_sample_is_near_1_052_whatever_its_size(n):
    keys = jax.random.split(jax.random.key(0), 40)
    values = [
        sigreg(jax.random.normal(key, (n, 8)), jax.random.fold_in(key, 1), num_directions=64)
        for key in keys
    ]
    assert abs(np.mean(values) - 1.052) < 0.08


def test_sigreg_of_a_batch_collapsed_to_zero_is_0_402_of_its_size():
    value = sigreg(jnp.zeros((50, 8)), jax.random.key(0), num_directions=16)
    np.testing.assert_allclose(value, 0.402 * 50, rtol=2e-3)
