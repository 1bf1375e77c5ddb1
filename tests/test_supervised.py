"""The supervised control against float64 NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load_config_file, randomized, stream_of

from jepa_jax.config import resolve
from jepa_jax.data.sources import array_source
from jepa_jax.errors import UserError
from jepa_jax.models.vision_transformer import make_encoder
from jepa_jax.objectives.mixing import mix
from jepa_jax.objectives.objective import Clock, at_path
from jepa_jax.objectives.registry import make_objective
from jepa_jax.objectives.supervised import cross_entropy


@pytest.fixture(scope="module")
def config():
    config = load_config_file("fashion_mnist_supervised")
    config.batch_size = 8
    config.model.update({"patch_size": 7, "embed_dim": 16, "depth": 1, "num_heads": 2})
    return resolve(config)


def by_hand(logits, labels, smoothing):
    logits = np.asarray(logits, np.float64)
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        log_p = row - row.max() - np.log(np.sum(np.exp(row - row.max())))
        for c in range(len(row)):
            q = smoothing / len(row) + (1 - smoothing if c == label else 0.0)
            total -= q * log_p[c]
    return total / len(logits)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_cross_entropy_is_that_of_smoothed_labels(smoothing):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (6, 5)).astype(np.float32), rng.integers(0, 5, 6)
    ours = cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing)
    np.testing.assert_allclose(ours, by_hand(logits, labels, smoothing), rtol=1e-5)


def test_the_loss_is_that_of_a_linear_classifier_on_pooled_tokens(config):
    objective = make_objective(config)
    params = randomized(objective)
    rng = np.random.default_rng(1)
    batch = {
        "image": jnp.asarray(rng.normal(size=(8, 28, 28, 3)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, 10, 8), jnp.int32),
    }
    value, out = objective.loss(params, (), batch, jax.random.key(0), Clock(0, 1.0))
    tokens = make_encoder(config).apply({"params": params["encoder"]}, batch["image"])
    pooled = np.asarray(tokens, np.float64).mean(axis=1)
    logits = pooled @ np.asarray(params["head"]["kernel"]) + np.asarray(params["head"]["bias"])
    np.testing.assert_allclose(value, by_hand(logits, batch["label"], 0.1), rtol=1e-5)
    accuracy = np.mean(logits.argmax(axis=1) == batch["label"])
    np.testing.assert_allclose(out["metrics"]["train_accuracy"], accuracy, rtol=1e-6)


def logits_by_hand(config, params, images):
    tokens = make_encoder(config).apply({"params": params["encoder"]}, images)
    pooled = np.asarray(tokens, np.float64).mean(axis=1)
    return pooled @ np.asarray(params["head"]["kernel"]) + np.asarray(params["head"]["bias"])


def test_mixed_images_are_trained_on_with_mixed_and_smoothed_targets(config):
    mixing = dataclasses.replace(config.objective, mixup=0.8)
    objective = make_objective(dataclasses.replace(config, objective=mixing))
    params, rng = randomized(objective), np.random.default_rng(1)
    images = rng.normal(size=(8, 28, 28, 3)).astype(np.float32)
    batch = {"image": jnp.asarray(images), "label": jnp.arange(8, dtype=jnp.int32)}
    key = jax.random.key(0)
    value, _ = objective.loss(params, (), batch, key, Clock(0, 1.0))
    eye = jnp.eye(8)
    _, shares = mix(batch["image"], eye, mixup=0.8, cutmix=0.0, key=jax.random.fold_in(key, 1))
    m = float(shares[0, 0])
    assert 0.01 < m < 0.99
    logits = logits_by_hand(
        config, params, jnp.asarray(m * images + (1 - m) * np.roll(images, 1, 0))
    )
    labels = np.arange(8)
    expected = m * by_hand(logits, labels, 0.1) + (1 - m) * by_hand(logits, np.roll(labels, 1), 0.1)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_encoder_and_head_are_averaged_and_the_average_classifies_and_is_probed(config):
    averaged = dataclasses.replace(config, objective=dataclasses.replace(config.objective, ema=0.9))
    plain, objective = make_objective(config), make_objective(averaged)
    params, state = randomized(objective), objective.state(1.0)
    update = jax.tree.map(lambda x: 0.3 + 0.1 * x, params)
    _, after = state.update(update, state.init(params), params)
    expected = jax.tree.map(
        lambda p, u: 0.9 * np.asarray(p, np.float64) + 0.1 * (np.asarray(p) + np.asarray(u)),
        params,
        update,
    )
    for ours, theirs in zip(jax.tree.leaves(after.target), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    first = next(iter(objective.encoders.values()))
    assert at_path({"objective_state": after}, first) is after.target["encoder"]
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 3)).astype(np.uint8)
    data = config.data
    images = jnp.asarray((pixels / 255 - np.array(data.mean)) / np.array(data.std), jnp.float32)
    for one, state_of, weights in ((objective, after, after.target), (plain, (), params)):
        logits = logits_by_hand(config, weights, images)
        ours = one.classify(params, state_of, jnp.asarray(pixels))
        np.testing.assert_allclose(ours, logits, atol=2e-4)
    assert list(plain.encoders) == ["encoder"]


def test_a_batch_s_labels_are_those_of_its_examples(config):
    labels = np.arange(20) % 10
    images = np.broadcast_to(labels.astype(np.uint8)[:, None, None, None], (20, 28, 28, 1))
    source = array_source(np.ascontiguousarray(images), labels, ("",) * 10, (28, 28))
    for batch in stream_of(config, source).batches(0, 4, None):
        np.testing.assert_array_equal(batch["label"], labels[batch["example_index"]])
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (None, "have no labels"),
        (np.full(20, 10), r"labels go from 10 to 10, .*num_classes = 10; must be at least 11"),
        (np.full(20, -1), r"labels go from -1 to -1"),
    ],
)
def test_labels_that_the_classifier_has_no_output_for_are_refused(config, labels, says):
    source = array_source(np.zeros((20, 28, 28, 1), np.uint8), np.zeros(20, int), (), (28, 28))
    with pytest.raises(UserError, match=says) as error:
        stream_of(config, dataclasses.replace(source, labels=labels))
    assert "\n" not in str(error.value)
