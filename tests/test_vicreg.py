"""VICReg against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load_config_file, randomized, stream_of

from jepa_jax.config import resolve
from jepa_jax.data.sources import array_source
from jepa_jax.models.vision_transformer import make_encoder
from jepa_jax.objectives.objective import Clock
from jepa_jax.objectives.registry import make_objective


def small_config(**objective):
    config = load_config_file("fashion_mnist_vicreg")
    config.batch_size = 8
    config.model.update({"patch_size": 7, "embed_dim": 16, "depth": 1, "num_heads": 2})
    config.objective.update({"expander_dim": 12, **objective})
    return resolve(config)


def expand_by_hand(params, pooled):
    y = np.asarray(pooled, np.float64)
    for layer in ("1", "2"):
        dense, norm = params[f"fc{layer}"], params[f"norm{layer}"]
        y = y @ np.asarray(dense["kernel"], np.float64) + np.asarray(dense["bias"])
        y = (y - y.mean(0)) / np.sqrt(y.var(0) + 1e-5)
        y = np.maximum(y * np.asarray(norm["scale"]) + np.asarray(norm["bias"]), 0)
    return y @ np.asarray(params["fc3"]["kernel"], np.float64)


def terms_by_hand(a, b):
    def variance(z):
        deviation = np.sqrt(z.var(axis=0, ddof=1) + 1e-4)
        return np.mean(np.maximum(0, 1 - deviation))

    def covariance(z):
        c = np.cov(z, rowvar=False)
        return (np.sum(c**2) - np.sum(np.diag(c) ** 2)) / z.shape[1]

    return {
        "invariance": np.mean((a - b) ** 2),
        "variance": (variance(a) + variance(b)) / 2,
        "covariance": covariance(a) + covariance(b),
    }


def test_the_loss_is_the_weighted_sum_of_its_three_terms_each_of_which_is_logged():
    config = small_config(invariance_weight=5.0, variance_weight=7.0, covariance_weight=2.0)
    objective = make_objective(config)
    params = randomized(objective)
    views = np.random.default_rng(0).normal(size=(8, 2, 28, 28, 3)).astype(np.float32)
    value, out = objective.loss(
        params, (), {"views": jnp.asarray(views)}, jax.random.key(0), Clock(0, 1.0)
    )
    encode = make_encoder(config).apply
    a, b = (
        expand_by_hand(
            params["expander"],
            np.mean(encode({"params": params["encoder"]}, jnp.asarray(views[:, v])), axis=1),
        )
        for v in range(2)
    )
    expected = terms_by_hand(a, b)
    for name, term in expected.items():
        assert term > 1e-3
        np.testing.assert_allclose(out["metrics"][name], term, rtol=1e-4, err_msg=name)
    weighted = 5 * expected["invariance"] + 7 * expected["variance"] + 2 * expected["covariance"]
    np.testing.assert_allclose(value, weighted, rtol=1e-5)

    kernel = np.asarray(params["expander"]["fc3"]["kernel"], np.float64)
    hidden = [np.asarray(z, np.float64) @ np.linalg.inv(kernel) for z in (a, b)]  # before the last

    def by_hand(kernel):
        terms = terms_by_hand(*(h @ kernel for h in hidden))
        return 5 * terms["invariance"] + 7 * terms["variance"] + 2 * terms["covariance"]

    gradient = jax.jit(
        jax.grad(
            lambda params: objective.loss(
                params, (), {"views": jnp.asarray(views)}, jax.random.key(0), Clock(0, 1.0)
            )[0]
        )
    )(params)["expander"]["fc3"]["kernel"]
    for entry in (np.unravel_index(np.argmax(np.abs(gradient)), kernel.shape), (2, 3)):
        step = np.zeros_like(kernel)
        step[entry] = 1e-5
        slope = (by_hand(kernel + step) - by_hand(kernel - step)) / 2e-5
        np.testing.assert_allclose(gradient[entry], slope, rtol=5e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "term", "factor"),
    [
        ({"variance_over_views": "sum"}, "variance", 2.0),
        ({"covariance_divisor": "pairs"}, "covariance", 1 / 11),  # of 12 features
    ],
)
def test_the_normalisations_of_forks_are_named(changes, term, factor):
    views = {"views": jnp.asarray(np.random.default_rng(0).normal(size=(8, 2, 28, 28, 3)))}
    found = []
    for config in (small_config(), small_config(**changes)):
        objective = make_objective(config)
        _, out = objective.loss(randomized(objective), (), views, jax.random.key(0), Clock(0, 1.0))
        found.append(out["metrics"])
    expected = {name: value * (factor if name == term else 1) for name, value in found[0].items()}
    for name, value in expected.items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-5, err_msg=name)


def test_the_published_weights_are_the_defaults():
    objective = small_config().objective
    weights = (
        objective.invariance_weight,
        objective.variance_weight,
        objective.covariance_weight,
    )
    assert weights == (25.0, 25.0, 1.0)


def test_an_example_s_two_views_are_different_crops_of_it_with_augmentations_of_their_own():
    grey = {"flip": 0.0, "jitter": 0.0}
    config = small_config(augmentation=grey, second_augmentation={**grey, "solarize": 1.0})
    rng = np.random.default_rng(1)
    images = rng.integers(0, 120, (16, 28, 28, 1), np.uint8)  # all below the threshold ...
    images[:, ::4] += 130  # ... but for some rows
    source = array_source(images, None, (), (28, 28))
    (batch,) = stream_of(config, source).batches(0, 1, None)
    assert batch["views"].shape == (8, 2, 28, 28, 3)
    first, second = batch["views"][:, 0], batch["views"][:, 1]
    assert first.max() > 150
    assert second.max() < 129  # what was brighter is inverted
    single = small_config(augmentation=grey, second_augmentation=grey)
    (batch,) = stream_of(single, source).batches(0, 1, None)
    assert (batch["views"][:, 0] != batch["views"][:, 1]).any(axis=(1, 2, 3)).all()
