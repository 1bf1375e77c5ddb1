"""The TPU's attention kernel, interpreted, against NumPy and XLA; no TPU has run it."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from jax.sharding import NamedSharding, PartitionSpec

from jepa_jax import train
from jepa_jax.config import MeshConfig, resolve
from jepa_jax.models import attention, pallas_attention
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training.setup import set_up
from jepa_jax.training.sharding import make_mesh, traced_on


def fused(q, k, v):
    """The kernel, of arrays [B, n, heads, d]: of all three in one, or of two."""

    def flat(*arrays):
        return jnp.concatenate([x.reshape(*x.shape[:2], -1) for x in arrays], axis=-1)

    qkv = (flat(q, k, v),) if q.shape == k.shape else (flat(q), flat(k, v))
    biases = tuple(jnp.zeros(x.shape[-1], x.dtype) for x in qkv)
    return pallas_attention.attend(qkv, biases, q.shape[2]).reshape(q.shape)


def random_arrays(batch, tokens, keys, heads, dim, dtype=np.float32):
    """Queries, keys, values, and a gradient of the output."""
    rng = np.random.default_rng(0)
    lengths = (tokens, keys, keys, tokens)
    return [jnp.asarray(rng.normal(size=(batch, n, heads, dim)), dtype) for n in lengths]


def by_hand(q, k, v, d_out):
    """Output and gradients in float64: a sum for each head and query."""
    q, k, v, d_out = (np.asarray(x, np.float64) for x in (q, k, v, d_out))
    out, dq, dk, dv = (np.zeros_like(x) for x in (q, q, k, v))
    scale = 1 / np.sqrt(q.shape[-1])
    for b, h, t in np.ndindex(q.shape[0], q.shape[2], q.shape[1]):
        scores = k[b, :, h] @ q[b, t, h] * scale
        p = np.exp(scores) / np.exp(scores).sum()
        out[b, t, h] = p @ v[b, :, h]
        d_p = v[b, :, h] @ d_out[b, t, h]
        d_scores = (np.diag(p) - np.outer(p, p)) @ d_p * scale
        dq[b, t, h] = d_scores @ k[b, :, h]
        dk[b, :, h] += np.outer(d_scores, q[b, t, h])
        dv[b, :, h] += np.outer(p, d_out[b, t, h])
    return out, dq, dk, dv


@pytest.mark.parametrize(
    ("tokens", "keys", "heads", "dim"),
    [
        (9, 9, 12, 32),  # the predictor's heads: four share 128 lanes
        (17, 17, 2, 64),
        (7, 7, 8, 80),  # ViT-H's: some lie in 256 lanes
        (5, 13, 3, 16),  # the last block's queries are fewer; lanes that are not filled
        (8, 6, 1, 128),
    ],
)
def test_output_and_gradients_are_those_by_hand(tokens, keys, heads, dim):
    q, k, v, d_out = random_arrays(2, tokens, keys, heads, dim)
    out, back = jax.vjp(fused, q, k, v)
    for ours, expected in zip((out, *back(d_out)), by_hand(q, k, v, d_out), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("keys", [9, 13])  # in one array, in two
def test_gradients_of_biases_are_the_sums_of_those_by_hand(keys):
    """That nothing flows through `qkv` is up to who makes it."""
    heads, dim = 3, 80
    q, k, v, d_out = random_arrays(2, 9, keys, heads, dim)
    parts = [(q, k, v)] if keys == 9 else [(q,), (k, v)]
    qkv = tuple(jnp.concatenate([x.reshape(*x.shape[:2], -1) for x in xs], -1) for xs in parts)
    biases = tuple(jnp.ones(x.shape[-1]) for x in qkv)
    _, back = jax.vjp(lambda biases: pallas_attention.attend(qkv, biases, heads), biases)
    (ours,) = back(d_out.reshape(2, 9, -1))
    _, *gradients = by_hand(q, k, v, d_out)
    expected = np.concatenate([x.sum(axis=(0, 1)).reshape(-1) for x in gradients])
    np.testing.assert_allclose(np.concatenate(ours), expected, rtol=1e-4, atol=1e-5)


def test_in_bfloat16_it_rounds_no_more_than_xla_s():
    q, k, v, d_out = random_arrays(2, 50, 50, 4, 32, jnp.bfloat16)
    exact = by_hand(q, k, v, d_out)
    errors = []
    for attend in (fused, jax.nn.dot_product_attention):
        out, back = jax.vjp(attend, q, k, v)
        results = (out, *back(d_out))
        assert {x.dtype for x in results} == {jnp.dtype(jnp.bfloat16)}
        errors.append([np.abs(x - y).mean() for x, y in zip(results, exact, strict=True)])
    assert np.all(np.array(errors[0]) < 1.3 * np.array(errors[1]))


def test_on_a_mesh_each_device_has_its_examples():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4), jax.devices())
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    q, k, v, d_out = random_arrays(8, 9, 9, 4, 32)
    qkv = jnp.concatenate([x.reshape(8, 9, -1) for x in (q, k, v)], axis=-1)

    def run(qkv, d_out):
        bias = jnp.zeros(qkv.shape[-1])
        out, back = jax.vjp(lambda qkv: pallas_attention.attend((qkv,), (bias,), 4), qkv)
        return out, *back(d_out)

    arrays = [jax.device_put(x, sharding) for x in (qkv, d_out.reshape(8, 9, -1))]
    program = jax.jit(traced_on(mesh, run)).lower(*arrays).compile()
    assert not any(word in program.as_text() for word in ("all-gather", "all-reduce", "all-to-all"))
    out, gradient = program(*arrays)
    expected, *gradients = by_hand(q, k, v, d_out)
    np.testing.assert_allclose(out, expected.reshape(8, 9, -1), rtol=1e-4, atol=2e-6)
    gradients = np.concatenate([x.reshape(8, 9, -1) for x in gradients], axis=-1)
    np.testing.assert_allclose(gradient, gradients, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(
    ("mesh", "batch", "tokens", "runs"),
    [
        ({"data": 2, "fsdp": 4}, 8, 256, True),  # ViT-H/14's, the largest published
        ({"data": 2, "fsdp": 4}, 1, 256, False),  # where parameters are made
        ({"data": 2, "fsdp": 2, "tensor": 2}, 8, 256, False),
        ({"data": 8}, 8, 1024, False),  # of 448 x 448: no room
        (None, 8, 256, False),
    ],
)
def test_it_runs_where_it_can_be_divided_and_has_room(mesh, batch, tokens, runs):
    x = jax.ShapeDtypeStruct((batch, tokens, 1280), jnp.bfloat16)
    answers = []

    def ask(x):
        answers.append(pallas_attention.runs_here(x))
        return x

    if mesh is not None:
        ask = traced_on(make_mesh(MeshConfig(**mesh), jax.devices()), ask)
    jax.eval_shape(ask, x)
    assert answers == [runs]


@pytest.fixture
def on_tpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    # Without what an earlier test has made it remember.
    monkeypatch.setattr(attention, "pallas_works", attention.pallas_works.__wrapped__)
    monkeypatch.setattr(attention, "works_everywhere", attention.works_everywhere.__wrapped__)


def test_it_runs_on_tpus_in_bfloat16_where_it_agrees_with_xla_s(on_tpu):
    assert attention.choose_attention("auto", "bfloat16", 32) == "pallas"
    assert attention.choose_attention("auto", "float32", 32) == "xla"
    assert attention.choose_attention("xla", "bfloat16", 32) == "xla"


def test_a_kernel_that_is_wrong_or_does_not_compile_is_said_and_not_used(
    on_tpu, monkeypatch, caplog
):
    def by_xla(qkv, bias, heads):
        x = qkv[0] + (bias - jax.lax.stop_gradient(bias))[None, None]  # for the gradient alone
        q, k, v = jnp.split(x.reshape(2, 50, 3 * heads, 64), 3, axis=2)
        return jax.nn.dot_product_attention(q, k, v).reshape(2, 50, -1)

    def wrong(qkv, biases, heads):
        return 1.1 * by_xla(qkv, biases[0], heads)

    def without_biases(qkv, biases, heads):
        return by_xla(qkv, jnp.zeros_like(biases[0]), heads)

    def broken(qkv, biases, heads):
        raise NotImplementedError("no such chip")

    for attend, said in (
        (wrong, "is off by 0.1"),
        (without_biases, "is off by 1 "),
        (broken, "no such chip"),
    ):
        caplog.clear()
        monkeypatch.setattr(pallas_attention, "attend", attend)
        with caplog.at_level(logging.WARNING):
            assert attention.choose_attention("auto", "bfloat16", 64) == "xla"
        assert said in caplog.text


def test_a_training_step_is_the_same_with_it(stepped):
    """Both encoders and the predictor, whose last block has fewer queries than keys."""
    losses, norms = zip(*(stepped(name) for name in ("xla", "pallas")), strict=True)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    np.testing.assert_allclose(norms[1], norms[0], rtol=1e-4)


@pytest.fixture
def stepped():
    """An implementation -> loss and gradient norm of two steps of I-JEPA on random images."""

    def run(name):
        config = tiny_config()
        config.compute.attention = name
        config.optimizer.warmup_epochs = 0
        config = resolve(config)
        objective = make_objective(config)
        setup = set_up(config, objective, steps_per_epoch=10, devices=jax.devices()[:2])
        ((shapes, _), *_) = objective.needs.variants(config.batch_size)
        rng = np.random.default_rng(0)
        batch = {
            key: rng.integers(0, 4, x.shape).astype(x.dtype)
            if np.issubdtype(x.dtype, np.integer)
            else rng.normal(size=x.shape).astype(x.dtype)
            for key, x in shapes.items()
        }
        state, measured = setup.create(), []
        for _ in range(2):
            state, metrics = setup.step(state, batch)
            measured.append((float(metrics["loss"]), float(metrics["gradient_norm"])))
        return np.array(measured).T

    return run


def test_off_a_tpu_a_run_with_it_is_told_to_be_slow(tiny, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(train, "train", lambda *_, **__: {"step": 1, "loss": 1.0})
    tiny.logging.knn_every_steps = tiny.logging.linear_every_steps = None
    for attention_of_run in ("auto", "pallas"):
        tiny.compute.attention = attention_of_run
        caplog.clear()
        train.pretrain(resolve(tiny), tmp_path)
        assert ("here it is interpreted" in caplog.text) == (attention_of_run == "pallas")


def test_the_attention_that_is_logged_is_the_one_that_runs(tiny, monkeypatch):
    """Not the one that was asked for, where the kernel is not for the run's arrays."""
    tiny.compute.attention = "pallas"
    assert train.attention_of_encoder(resolve(tiny)) == "pallas"
    tiny.mesh.tensor = 2
    said = "xla, since the TPU kernel is not for this (config.mesh.tensor = 2)"
    assert train.attention_of_encoder(resolve(tiny)) == said
    tiny.mesh.tensor = 1
    monkeypatch.setattr(pallas_attention, "ROOM", 2**14)
    said = (
        "xla, since the TPU kernel is not for this (16 tokens of width 16 have no room on a chip)"
    )
    assert train.attention_of_encoder(resolve(tiny)) == said
