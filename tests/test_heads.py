"""Grids of heads against formulas in NumPy, against heads trained alone, and from end to end."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import randomized
from scipy.special import erf, log_softmax, softmax

from jepa_jax.config import MeshConfig, resolve, resolve_probe
from jepa_jax.config.files import load_config
from jepa_jax.data.sources import array_source, restricted
from jepa_jax.errors import StoppedRunError, UserError
from jepa_jax.evaluation import head_training
from jepa_jax.evaluation.backbones import Backbone, of_encoder, of_pixels
from jepa_jax.evaluation.features import colour_histograms
from jepa_jax.evaluation.head_training import train_heads
from jepa_jax.evaluation.heads import (
    AttentiveHead,
    Kind,
    LinearHead,
    initial,
    make_grid,
    make_predict,
    make_step,
    reach,
)
from jepa_jax.evaluation.tasks import Task
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training.sharding import make_mesh

RNG = np.random.default_rng(0)
CLASSES = Task("classification", 3)
X = RNG.normal(2.0, 3.0, size=(4, 12, 5)).astype(np.float32)  # [steps, B, D]
LABELS = RNG.integers(0, 3, (4, 12)).astype(np.int32)
ONES = np.ones(12, np.float32)


def halves(step):
    """Half the rate from step 2 on."""
    return jnp.where(step < 2, 1.0, 0.5)


def linear_grid(optimizer="lars", lr=(20.0, 5.0), weight_decay=(0.1, 0.0), kinds=None):
    return make_grid(
        LinearHead(3),
        CLASSES,
        kinds or [Kind("last", False), Kind("last", True)],
        lr=lr,
        weight_decay=weight_decay,
        optimizer=optimizer,
        schedule=halves,
    )


def train(grid, weights=ONES):
    state, step = initial(grid, {"last": X[0]}, seed=0), make_step(grid)
    for x, labels in zip(X, LABELS, strict=True):
        state, losses = step(state, {"last": x}, labels, weights)
    return state, losses


@pytest.mark.parametrize("batch_norm", [False, True])
def test_lars_is_its_formula(batch_norm):
    """You et al., 2017, as MAE applies it: kernels alone have a trust ratio and decay."""
    kind = Kind("last", batch_norm)
    grid = linear_grid(lr=(20.0,), weight_decay=(0.1,), kinds=[kind])
    start = initial(grid, {"last": X[0]}, seed=0).params[str(kind)]["classifier"]
    w, b = (np.asarray(start[name][0], np.float64) for name in ("kernel", "bias"))
    momentum = [np.zeros_like(w), np.zeros_like(b)]
    mean, variance = np.zeros(5), np.ones(5)
    for step, (x, labels) in enumerate(zip(X.astype(np.float64), LABELS, strict=True)):
        if batch_norm:
            mean = 0.9 * mean + 0.1 * x.mean(0)
            variance = 0.9 * variance + 0.1 * x.var(0, ddof=1)
            x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-6)
        error = (softmax(x @ w + b, axis=1) - np.eye(3)[labels]) / 12
        loss = -np.mean(log_softmax(x @ w + b, axis=1)[np.arange(12), labels])
        gradient = x.T @ error + 0.1 * w
        gradient *= 1e-3 * np.linalg.norm(w) / np.linalg.norm(gradient)
        momentum = [0.9 * momentum[0] + gradient, 0.9 * momentum[1] + error.sum(0)]
        lr = 20.0 * (1.0 if step < 2 else 0.5)
        w, b = w - lr * momentum[0], b - lr * momentum[1]
    state, losses = train(grid)
    trained = state.params[str(kind)]["classifier"]
    np.testing.assert_allclose(trained["kernel"][0], w, rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(trained["bias"][0], b, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(losses[0], loss, rtol=1e-4)
    if batch_norm:
        np.testing.assert_allclose(state.norm[str(kind)][0], mean, rtol=1e-5)
        np.testing.assert_allclose(state.norm[str(kind)][1], variance, rtol=1e-5)
        seen = make_predict(grid)(state, {"last": X[0]})
        expected = (X[0] - mean) / np.sqrt(variance + 1e-6) @ w + b
        np.testing.assert_allclose(seen[0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("optimizer", ["lars", "adamw"])
def test_heads_trained_at_once_are_those_trained_one_by_one(optimizer):
    lr = (20.0, 5.0) if optimizer == "lars" else (0.1, 0.01)
    together, losses = train(linear_grid(optimizer, lr))
    outputs = make_predict(linear_grid(optimizer, lr))(together, {"last": X[0]})
    place = 0
    for kind in (Kind("last", False), Kind("last", True)):
        for rate in lr:
            for decay in (0.1, 0.0):
                grid = linear_grid(optimizer, (rate,), (decay,), [kind])
                alone, loss = train(grid)
                np.testing.assert_allclose(losses[place], loss[0], rtol=1e-5)
                own = make_predict(grid)(alone, {"last": X[0]})[0]
                np.testing.assert_allclose(outputs[place], own, rtol=1e-4, atol=1e-5)
                place += 1
    assert len(np.unique(np.round(losses, 6))) == place == 8


def test_how_far_lars_can_move_is_the_sum_of_its_steps():
    """A gradient that always points the same way, and is all trust ratio."""
    grid = linear_grid(lr=(20.0,), weight_decay=(0.0,))
    moved, momentum = 0.0, 0.0
    for step in range(400):
        momentum = 0.9 * momentum + 1e-3
        moved += (20.0 if step < 2 else 10.0) * momentum
    assert reach(grid, 400) == pytest.approx(moved, rel=0.03)


def test_examples_of_weight_0_count_for_nothing():
    grid = linear_grid(kinds=[Kind("last", True)], lr=(5.0,), weight_decay=(0.0,))
    state, step = initial(grid, {"last": X[0]}, seed=0), make_step(grid)
    padded = np.concatenate([X[0], 100 * X[1]])
    weights = np.concatenate([ONES, 0 * ONES])
    padded_state, loss = step(state, {"last": padded}, np.tile(LABELS[0], 2), weights)
    state = initial(grid, {"last": X[0]}, seed=0)
    state, expected = step(state, {"last": X[0]}, LABELS[0], ONES)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(padded_state), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_an_attentive_head_is_its_formula():
    head = AttentiveHead(outputs=3, num_heads=2)
    tokens = jnp.asarray(RNG.normal(size=(2, 6, 8)), jnp.float32)
    params = head.init(jax.random.key(0), tokens)["params"]
    params = jax.tree.map(lambda x: RNG.normal(size=x.shape).astype(np.float32), params)

    def norm(x, p):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * p["scale"] + p["bias"]

    def project(x, p):
        return np.einsum("...d,dhk->...hk", x, p["kernel"]) + p["bias"]

    expected = []
    for x in np.asarray(tokens, np.float64):
        seen = norm(x, params["norm1"])
        query = project(params["query"], params["query_proj"])  # [heads, d]
        key, value = (project(seen, params[name]) for name in ("key_proj", "value_proj"))
        weights = softmax(np.einsum("hk,nhk->hn", query, key) / np.sqrt(4), axis=1)
        q = params["query"] + np.einsum("hn,nhk->hk", weights, value).reshape(-1)
        hidden = norm(q, params["norm2"]) @ params["mlp"]["fc1"]["kernel"]
        hidden = hidden + params["mlp"]["fc1"]["bias"]
        hidden = hidden * 0.5 * (1 + erf(hidden / np.sqrt(2)))
        q = q + hidden @ params["mlp"]["fc2"]["kernel"] + params["mlp"]["fc2"]["bias"]
        classifier = params["classifier"]
        expected.append(q @ classifier["kernel"] + classifier["bias"])
    found = head.apply({"params": params}, tokens)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
    deeper = AttentiveHead(3, 2, self_attention_blocks=3).init(jax.random.key(0), tokens)
    assert {name for name in deeper["params"] if "block" in name} == {"block1", "block2", "block3"}


@pytest.fixture(scope="module")
def sources():
    """Images of three classes that differ in colour, 8 x 8."""

    def make(n, seed):
        rng = np.random.default_rng(seed)
        labels = np.arange(n) % 3
        pixels = (
            rng.integers(0, 120, (n, 8, 8, 3)) + 100 * np.eye(3, dtype=int)[labels][:, None, None]
        )
        return array_source(pixels.astype(np.uint8), labels, ("r", "g", "b"), (8, 8))

    return {"train": make(60, 1), "test": make(30, 2)}


def colours():
    """Mean colours as features, wherever they are computed."""

    def compute(images):
        mean = jnp.asarray(images, jnp.float32).mean(axis=(1, 2)) / 100
        return {"last": mean, "tokens": jnp.repeat(mean[:, None], 4, axis=1)}

    return Backbone("colours", compute, 1)


def config_of(**fields):
    config = resolve_probe(load_config("configs/probe/linear_lars.py", []))
    small = {
        "epochs": 4,
        "batch_size": 8,
        "head_batch_size": 16,
        "features": ("last",),
        "optimizer": "adamw",
        "lr": (0.3, 1e-5),
        "validation_fraction": 0.2,
    }
    return dataclasses.replace(config, **(small | fields))


@pytest.mark.parametrize("augment", [False, True])
def test_the_best_head_is_chosen_and_tells_the_classes(tiny, sources, tmp_path, augment):
    """And a probe that is cut goes on as if it had not been."""
    data = dataclasses.replace(resolve(tiny).data, image_size=(8, 8))
    config = config_of(augment=augment)
    result = train_heads(config, data, sources, colours())
    assert result["accuracy"] > 0.9
    assert "lr 0.3" in result["chosen"]
    assert len(result["validation"]) == 8
    assert result["validation"][result["chosen"]] == max(result["validation"].values())
    progress = tmp_path / "heads.npz"
    half = dataclasses.replace(config, epochs=2, drop_epochs=15)
    train_heads(half, data, sources, colours(), progress=progress)
    again = train_heads(config, data, sources, colours(), progress=progress)
    assert again["validation"] == result["validation"]
    np.testing.assert_array_equal(again["per_example"], result["per_example"])
    with pytest.raises(UserError, match=r"heads\.npz: can't go on from it: it holds heads"):
        train_heads(config_of(lr=(0.1,)), data, sources, colours(), progress=progress)


def test_attentive_heads_tell_the_classes_too(tiny, sources):
    data = dataclasses.replace(resolve(tiny).data, image_size=(8, 8))
    config = config_of(
        protocol="attentive", augment=False, num_heads=3, lr=(0.03,), weight_decay=(0.0,), epochs=8
    )
    assert train_heads(config, data, sources, colours())["accuracy"] > 0.9
    with pytest.raises(UserError, match="must divide 3, the features' width"):
        train_heads(dataclasses.replace(config, num_heads=2), data, sources, colours())
    with pytest.raises(UserError, match="head_batch_size = 64: must be at most 48"):
        train_heads(dataclasses.replace(config, head_batch_size=64), data, sources, colours())


def test_bad_images_have_weight_0(tiny, sources, monkeypatch):
    def some_bad(data, source, *, index, batch_size, bad):
        for start in range(0, len(index), batch_size):
            bad += [i for i in index[start : start + batch_size] if i % 7 == 0]
            yield np.zeros((len(index[start : start + batch_size]), 8, 8, 3), np.uint8)

    monkeypatch.setattr(head_training, "eval_batches", some_bad)
    data = dataclasses.replace(resolve(tiny).data, image_size=(8, 8))
    weights = [w for _, w in head_training._evaluated(data, sources["test"], colours(), 8)]
    np.testing.assert_array_equal(np.flatnonzero(~np.concatenate(weights)), [0, 7, 14, 21, 28])
    fewer = restricted(sources["test"], np.arange(2))  # of which one is bad
    assert len(list(head_training._evaluated(data, fewer, colours(), 8))) == 1
    few = restricted(sources["test"], np.arange(1))
    with pytest.raises(StoppedRunError, match="1 of 1 centre-cropped images are bad"):
        list(head_training._evaluated(data, few, colours(), 8))


def test_features_are_the_same_on_one_device_and_on_eight(tiny, one_device):
    config = resolve(tiny)
    objective = make_objective(config)
    weights = randomized(objective)["encoder"]
    pixels = RNG.integers(0, 255, (8, 28, 28, 3), np.uint8)
    wanted = ("last", "last_four", "tokens")
    one, eight = (
        of_encoder("x", objective, weights, config, mesh, features=wanted)
        for mesh in (one_device, make_mesh(MeshConfig()))
    )
    assert (one.devices, eight.devices) == (1, 8)
    ours, theirs = one.compute(pixels), eight.compute(pixels)
    layers = np.asarray(jax.jit(objective.encode, static_argnums=2)(weights, pixels, (0, 1)))
    expected = {
        "tokens": layers[1],
        "last": layers[1].mean(axis=1),
        "last_four": np.concatenate(list(layers.mean(axis=2)), axis=1),  # of two blocks, two
    }
    for name in wanted:
        np.testing.assert_allclose(ours[name], theirs[name], atol=2e-5)
        np.testing.assert_allclose(ours[name], expected[name], atol=2e-5)


def test_pixels_are_a_control_of_every_width(tiny, one_device):
    config = resolve(tiny)
    pixels = RNG.integers(0, 255, (2, 28, 28, 3), np.uint8)
    normal = (pixels / np.float32(255) - config.data.mean) / config.data.std
    flat = of_pixels(config, config.data, one_device, features=("last",))
    assert flat.name == "raw_pixels"
    np.testing.assert_allclose(
        flat.compute(pixels)["last"], normal.reshape(2, -1), rtol=1e-4, atol=1e-5
    )
    tokens = of_pixels(config, config.data, one_device, features=("tokens",)).compute(pixels)
    np.testing.assert_allclose(
        tokens["tokens"][0, 0], normal[0, :7, :7].reshape(-1), rtol=1e-4, atol=1e-5
    )
    large = dataclasses.replace(config.data, image_size=(224, 224))
    histograms = of_pixels(config, large, one_device, features=("last",))
    assert histograms.name == "colour_histograms"
    np.testing.assert_array_equal(histograms.compute(pixels)["last"], colour_histograms(pixels))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colour_histograms_count_bins_of_equal_width(dtype):
    most = np.iinfo(dtype).max
    pixels = RNG.integers(0, most + 1, (3, 9, 7, 3), dtype)
    for image, found in zip(pixels, colour_histograms(pixels), strict=True):
        expected, _ = np.histogramdd(image.reshape(-1, 3), bins=8, range=[(0, float(most) + 1)] * 3)
        np.testing.assert_allclose(found, expected.reshape(-1) / 63, atol=1e-6)
