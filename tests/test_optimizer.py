import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jepa_jax.config import resolve
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training.optimizer import decay_mask, make_optimizer
from jepa_jax.training.schedules import Schedules

STEPS = 20
DECAYED = {"kernel": True, "bias": False, "scale": False, "mask_token": True}


def learning_rate(step):
    return 1e-3 * (1 + step)


def weight_decay(step):
    return 0.04 + 0.3 * step


@pytest.fixture(scope="module")
def trajectory():
    """Parameters before step 0 and gradients of 20 steps, whose sizes differ a hundredfold."""
    rng = np.random.default_rng(0)
    shapes = {"kernel": (4, 3), "bias": (3,), "scale": (2, 3), "mask_token": (5,)}
    start = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    sizes = 10.0 ** rng.uniform(-1.5, 0.5, STEPS)
    gradients = [
        {name: size * rng.normal(size=shape) for name, shape in shapes.items()} for size in sizes
    ]
    return start, gradients


def numpy_adamw(start, gradients, *, b1, b2, eps, clip_norm, first_moment_dtype="float64"):
    """AdamW as Loshchilov & Hutter state it (with PyTorch's learning rate on the decay)."""
    dtype = jnp.dtype(first_moment_dtype)
    params = dict(start)
    first = {name: np.zeros_like(x) for name, x in start.items()}
    second = {name: np.zeros_like(x) for name, x in start.items()}
    for step, gradient in enumerate(gradients):
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        factor = min(1.0, clip_norm / norm) if clip_norm else 1.0
        for name in params:
            g = gradient[name] * factor
            first[name] = b1 * first[name] + (1 - b1) * g
            second[name] = b2 * second[name] + (1 - b2) * g**2
            m_hat = first[name] / (1 - b1 ** (step + 1))
            v_hat = second[name] / (1 - b2 ** (step + 1))
            first[name] = first[name].astype(dtype).astype(np.float64)
            decay = weight_decay(step) * params[name] if DECAYED[name] else 0.0
            params[name] = params[name] - learning_rate(step) * (
                m_hat / (np.sqrt(v_hat) + eps) + decay
            )
    return params


@pytest.mark.parametrize(
    "fields",
    [
        {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "clip_norm": None},
        {"b1": 0.8, "b2": 0.95, "eps": 1e-2, "clip_norm": 1.0},
        # In bfloat16, 0.99 is 0.988: after 20 steps its moment would be a tenth too small.
        {
            "b1": 0.99,
            "b2": 0.999,
            "eps": 1e-2,
            "clip_norm": None,
            "first_moment_dtype": "bfloat16",
        },
    ],
    ids=["published", "clipped", "first moment in bfloat16"],
)
def test_twenty_steps_equal_an_independent_adamw(tiny, trajectory, fields):
    start, gradients = trajectory
    optimizer = make_optimizer(
        dataclasses.replace(resolve(tiny).optimizer, **fields),
        Schedules(learning_rate, weight_decay, horizon=20.0),
    )
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), start)
    state = optimizer.init(params)

    @jax.jit
    def update(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for gradient in gradients:
        gradient = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), gradient)
        params, state = update(params, state, gradient)
    expected = numpy_adamw(start, gradients, **fields)
    rounded = "first_moment_dtype" in fields  # a number between two may be rounded to either
    for name in start:
        tolerance = 2e-4 if rounded else 1e-5
        np.testing.assert_allclose(params[name], expected[name], rtol=tolerance, atol=tolerance)
    types = {str(x.dtype) for x in jax.tree.leaves(optax.tree.get(state, "mu"))}
    assert types == {"bfloat16" if rounded else "float32"}
    assert {str(x.dtype) for x in jax.tree.leaves(optax.tree.get(state, "nu"))} == {"float32"}


def test_weight_decay_is_on_the_kernels_and_the_mask_vector_alone(tiny):
    params = jax.eval_shape(make_objective(resolve(tiny)).init, jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(decay_mask(params))
    by_name = {
        jax.tree_util.keystr(path, simple=True, separator="/"): decays for path, decays in leaves
    }
    blocks = ["attention/qkv", "attention/proj", "mlp/fc1", "mlp/fc2"]
    kernels = {
        "encoder/patch_embed",
        *(f"encoder/transformer/blocks/{dense}" for dense in blocks),
        "predictor/embed",
        *(f"predictor/transformer/blocks/{dense}" for dense in blocks),
        "predictor/proj",
    }
    norms = {
        f"{network}/transformer/{norm}"
        for network in ("encoder", "predictor")
        for norm in ("blocks/norm1", "blocks/norm2", "norm")
    }
    assert {name for name, decays in by_name.items() if decays} == {
        *(f"{name}/kernel" for name in kernels),
        "predictor/mask_token",
    }
    assert {name for name, decays in by_name.items() if not decays} == {
        *(f"{name}/bias" for name in kernels | norms),
        *(f"{name}/scale" for name in norms),
    }
