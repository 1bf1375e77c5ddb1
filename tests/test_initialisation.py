import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_model import random_params

from jepa_jax.config import resolve
from jepa_jax.models.predictor import Predictor, make_predictor
from jepa_jax.models.transformer import Transformer, rescale_by_depth
from jepa_jax.models.vision_transformer import VisionTransformer, make_encoder

GRID, WIDTH = (3, 4), 16


@pytest.fixture(scope="module")
def initial():
    """The parameters of an encoder and of a predictor, by their paths."""
    encoder = VisionTransformer(grid=GRID, patch_size=2, embed_dim=WIDTH, depth=3, num_heads=2)
    predictor = Predictor(
        grid=GRID, output_dim=WIDTH, embed_dim=64, depth=2, num_heads=2, init_std=0.05
    )

    @jax.jit
    def init(key):
        context, index = jnp.zeros((1, 4, WIDTH)), jnp.arange(4)[None]
        return {
            "encoder": encoder.init(key, jnp.zeros((1, 6, 8, 3))),
            "predictor": predictor.init(key, context, index, index[None]),
        }

    leaves, _ = jax.tree_util.tree_flatten_with_path(init(jax.random.key(0)))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
    }


def test_kernels_and_the_mask_vector_start_normal_with_the_given_deviation(initial):
    names = [name for name in initial if name.endswith(("kernel", "mask_token"))]
    assert len(names) == 1 + 4 + 2 + 4 + 1  # patch_embed; blocks; embed, proj; blocks; mask_token
    for name in names:
        values = initial[name].ravel()
        deviation = 0.02 if name.startswith("encoder") else 0.05  # 0.02: the published default
        error = 5 / math.sqrt(2 * values.size)  # of an estimated deviation, five times
        np.testing.assert_allclose(values.std(), deviation, rtol=error)
        assert abs(values.mean()) < 5 * deviation / math.sqrt(values.size)


def test_the_configured_deviation_reaches_both_networks(tiny):
    tiny.init.std = 0.07
    config = resolve(tiny)
    predictor = make_predictor(config, config.objective.predictor, output_dim=16)
    assert make_encoder(config).init_std == predictor.init_std == 0.07


def test_biases_start_at_0_and_layer_norm_scales_at_1(initial):
    for name, values in initial.items():
        if not name.endswith(("kernel", "mask_token")):
            assert (values == (1.0 if name.endswith("scale") else 0.0)).all()


def test_no_two_layers_start_alike(initial):
    for name, values in initial.items():
        if "blocks" in name and name.endswith("kernel"):
            layers = values.reshape(len(values), -1)
            assert np.abs(np.corrcoef(layers) - np.eye(len(layers))).max() < 0.4


def test_depth_rescale_divides_exactly_the_last_kernel_of_each_branch():
    depth = 3
    transformer = random_params(Transformer(depth=depth, num_heads=2), jnp.zeros((1, 2, WIDTH)))
    rescaled = jax.tree.map(np.asarray, rescale_by_depth(transformer))
    ratio = jax.tree.map(lambda new, old: new / np.asarray(old), rescaled, transformer)
    divisor = 1 / np.sqrt([2.0, 4.0, 6.0])  # layers 1, 2, 3
    for branch, dense in (("attention", "proj"), ("mlp", "fc2")):
        found = ratio["blocks"][branch][dense].pop("kernel").reshape(depth, -1)
        np.testing.assert_allclose(found, np.broadcast_to(divisor[:, None], found.shape), rtol=1e-6)
    assert all((leaf == 1.0).all() for leaf in jax.tree.leaves(ratio))
