"""SwAV against float64 NumPy: loss, codes, queue, and prototypes that are frozen at first."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load_config_file, randomized
from test_statistics import sinkhorn_by_hand

from jepa_jax.config import resolve
from jepa_jax.errors import UserError
from jepa_jax.models.vision_transformer import make_encoder
from jepa_jax.objectives.objective import Clock
from jepa_jax.objectives.registry import make_objective
from jepa_jax.objectives.swav import SwavState, keep_queue
from jepa_jax.training.setup import set_up

B, E, K, LENGTH = 6, 5, 4, 12


def small_config(**objective):
    config = load_config_file("fashion_mnist_swav")
    config.batch_size = B
    config.model.update({"patch_size": 7, "embed_dim": 16, "depth": 1, "num_heads": 2})
    config.objective.update(
        {
            "num_prototypes": K,
            "epsilon": 0.05,
            "hidden_dim": 8,
            "output_dim": E,
            "queue_length": LENGTH,
            "queue_start_step": 2,
            "freeze_prototypes_steps": 2,
            "num_local": 2,
            "local_size": (14, 14),
            **objective,
        }
    )
    return resolve(config)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "global": jnp.asarray(rng.normal(size=(B, 2, 28, 28, 3)), jnp.float32),
        "local": jnp.asarray(rng.normal(size=(B, 2, 14, 14, 3)), jnp.float32),
    }


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def embeddings_by_hand(config, params, batch):
    """[4, B, E] in float64: two large crops, two small ones; one batch norm over all of them."""
    encode, pooled = make_encoder(config).apply, []
    for name in ("global", "local"):
        for crop in range(2):
            tokens = encode({"params": params["encoder"]}, batch[name][:, crop])
            pooled.append(np.asarray(tokens, np.float64).mean(axis=1))
    y = np.concatenate(pooled)
    head = jax.tree.map(lambda x: np.asarray(x, np.float64), params["projector"])
    y = y @ head["fc1"]["kernel"] + head["fc1"]["bias"]
    y = (y - y.mean(0)) / np.sqrt(y.var(0) + 1e-5)
    y = np.maximum(y * head["norm1"]["scale"] + head["norm1"]["bias"], 0)
    return unit(y @ head["fc2"]["kernel"] + head["fc2"]["bias"]).reshape(4, B, E)


@pytest.mark.parametrize("filled", [LENGTH, LENGTH - 1])
def test_the_loss_is_the_mean_cross_entropy_of_other_crops_with_a_crop_s_code(batch, filled):
    """With the codes of the queue and the batch together only where the queue is full."""
    config = small_config()
    objective, rng = make_objective(config), np.random.default_rng(1)
    params = randomized(objective)
    queue = unit(rng.normal(size=(2, LENGTH, E))).astype(np.float32)
    state = SwavState(jnp.asarray(queue), jnp.asarray(filled, jnp.int32))
    value, out = jax.jit(objective.loss)(params, state, batch, jax.random.key(0), Clock(0, 9.0))

    z = embeddings_by_hand(config, params, batch)
    prototypes = unit(np.asarray(params["prototypes"]["kernel"], np.float64))
    total = 0.0
    for large in range(2):
        scores = z[large] @ prototypes.T
        if filled == LENGTH:
            scores = np.concatenate([scores, queue[large] @ prototypes.T])
        codes = sinkhorn_by_hand(scores, 0.05, 3)[:B]
        for crop in range(4):
            if crop != large:
                logits = z[crop] @ prototypes.T / 0.1
                log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
                total -= np.mean(np.sum(codes * log_p, axis=1)) / 6
    # Logarithms of what is nearly 1: float32 has them to 1e-7.
    np.testing.assert_allclose(value, total, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(out["embeddings"], z[:2], atol=1e-5)


def test_the_codes_receive_no_gradient(batch):
    """Moving the scores of the large crops would otherwise move their own targets."""
    config = small_config(queue_length=0)
    objective = make_objective(config)
    params = randomized(objective)
    state = objective.state(9.0).init(params)

    def loss(params):
        return objective.loss(params, state, batch, jax.random.key(0), Clock(0, 9.0))[0]

    gradient = jax.jit(jax.grad(loss))(params)["prototypes"]["kernel"]
    # The same with the codes held fixed by hand, by finite differences.
    z = embeddings_by_hand(config, params, batch)
    kernel = np.asarray(params["prototypes"]["kernel"], np.float64)
    codes = [sinkhorn_by_hand(z[crop] @ unit(kernel).T, 0.05, 3) for crop in range(2)]

    def fixed(kernel):
        total = 0.0
        for large in range(2):
            for crop in range(4):
                if crop != large:
                    logits = z[crop] @ unit(kernel).T / 0.1
                    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
                    total -= np.mean(np.sum(codes[large] * log_p, axis=1)) / 6
        return total

    for k, e in ((0, 0), (1, 3), (3, 2)):
        step = np.zeros_like(kernel)
        step[k, e] = 1e-5
        slope = (fixed(kernel + step) - fixed(kernel - step)) / 2e-5
        np.testing.assert_allclose(gradient[k, e], slope, rtol=2e-3, atol=1e-5)


def test_the_queue_keeps_the_newest_embeddings_and_waits_for_its_start():
    transform = keep_queue(small_config().objective)
    state = transform.init(None)
    batches = [np.full((2, B, E), n, np.float32) for n in range(1, 5)]
    for number, new in enumerate(batches):
        out = {"embeddings": jnp.asarray(new), "fill": jnp.asarray(number > 0)}
        _, state = transform.update({}, state, None, out=out)
        if number == 0:
            assert not state.queue.any()
            assert state.filled == 0
    assert state.filled == LENGTH
    expected = np.concatenate([batches[3], batches[2]], axis=1)
    np.testing.assert_array_equal(state.queue, expected)


def test_prototypes_are_frozen_for_the_first_steps_and_trained_after_them(batch, one_device):
    config = small_config()
    setup = set_up(config, make_objective(config), steps_per_epoch=5, mesh=one_device, donate=False)
    states = [setup.create()]
    for _ in range(3):
        states.append(setup.step(states[-1], batch)[0])
    kernels = [np.asarray(state.params["prototypes"]["kernel"]) for state in states]
    np.testing.assert_array_equal(kernels[1], kernels[0])
    np.testing.assert_array_equal(kernels[2], kernels[0])
    assert (kernels[3] != kernels[2]).any()
    projector = [np.asarray(state.params["projector"]["fc2"]["kernel"]) for state in states]
    assert (projector[1] != projector[0]).any()
    # Steps are counted from 0; in step 2 the queue begins to be filled.
    assert [int(state.objective_state.filled) for state in states] == [0, 0, 0, B]


def test_a_queue_shorter_than_a_batch_is_refused():
    with pytest.raises(UserError, match=r"queue_length = 5: must hold a batch of .* = 6 at least"):
        make_objective(small_config(queue_length=5))


def test_small_crops_that_patches_do_not_fill_are_refused_before_anything_runs():
    with pytest.raises(UserError, match=r"local_size = \(14, 15\): the width must be .*_size = 7"):
        small_config(local_size=(14, 15))
    small_config(local_size=(14, 15), num_local=0)  # there are none
