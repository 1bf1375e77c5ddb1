import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_model import random_params

from jepa_jax.models.transformer import Block, Transformer


@pytest.fixture(scope="module")
def branches():
    """The scaled branches that 4000 examples kept at rates 0, 0.3, 0.6: float [B, 2, layers].

    All kernels are 0, so that a branch is the last bias on it: a vector of its own for each branch
    of each layer, from which the sum can be taken apart again.
    """
    depth, rate, width, examples = 3, 0.6, 8, 4000
    transformer = Transformer(depth=depth, num_heads=1, mlp_ratio=1.0, drop_path_rate=rate)
    x = jnp.zeros((examples, 1, width))
    params = jax.tree.map(jnp.zeros_like, random_params(transformer, x))
    params["blocks"]["attention"]["proj"]["bias"] = jnp.eye(width)[0:3]
    params["blocks"]["mlp"]["fc2"]["bias"] = jnp.eye(width)[3:6]
    params["norm"]["scale"] = jnp.ones(width)
    run = jax.jit(
        lambda key: transformer.apply(
            {"params": params}, x, deterministic=False, rngs={"drop_path": key}
        )
    )
    normalised = np.asarray(run(jax.random.key(0)), np.float64)[:, 0]  # [B, D]
    # The last LayerNorm shifts and scales; features 6 and 0 are known to be 0 and 1 before it,
    # because the first layer drops nothing.
    zero, one = normalised[:, 6:7], normalised[:, 0:1]
    kept = ((normalised - zero) / (one - zero))[:, :6]
    return kept.reshape(examples, 2, depth)


RATES = (0.0, 0.3, 0.6)  # linear from 0 to the last block's


def test_drop_path_rates_rise_linearly_from_0_to_the_given_rate(branches):
    dropped = (np.abs(branches) < 1e-3).mean(axis=0)  # [2, layers]
    # Five standard deviations of a share among 4000.
    np.testing.assert_allclose(dropped, [RATES, RATES], atol=5 * math.sqrt(0.25 / 4000))
    assert (dropped[:, 0] == 0).all()


def test_a_kept_branch_is_scaled_so_that_its_expectation_stays(branches):
    for layer, rate in enumerate(RATES):
        values = branches[:, :, layer]
        kept = values[np.abs(values) > 1e-3]
        np.testing.assert_allclose(kept, 1 / (1 - rate), rtol=1e-3)
    np.testing.assert_allclose(branches.mean(axis=0), 1.0, atol=0.1)


def test_branches_layers_and_examples_are_dropped_independently(branches):
    kept = (branches[:, :, 1:] > 1e-3).reshape(4000, 4)
    correlation = np.corrcoef(kept.T) - np.eye(4)
    assert np.abs(correlation).max() < 5 / math.sqrt(4000)
    assert len(np.unique(kept, axis=0)) == 16


def test_a_dropped_example_passes_its_block_unchanged():
    fields = {"num_heads": 2, "mlp_ratio": 2.0, "dtype": jnp.float32, "init_std": 0.02}
    block = Block(**fields, stochastic=True)
    x = jnp.asarray(np.random.default_rng(6).normal(size=(64, 3, 8)), jnp.float32)
    params = random_params(Block(**fields, stochastic=False), x, jnp.float32(0.5))
    run = jax.jit(
        lambda key: block.apply({"params": params}, x, jnp.float32(0.5), rngs={"drop_path": key})
    )
    unchanged = (run(jax.random.key(1)) == x).all(axis=(1, 2))  # both branches dropped: a quarter
    assert 4 <= unchanged.sum() <= 30
