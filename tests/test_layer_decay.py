"""Layer-wise learning rates against a statement of them in NumPy."""

import jax
import numpy as np
import pytest
from conftest import load_config_file

from jepa_jax.config import resolve
from jepa_jax.errors import UserError
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training.layer_decay import layer_factors
from jepa_jax.training.setup import set_up

DEPTH, DECAY = 3, 0.7


def supervised(**changes):
    config = load_config_file("fashion_mnist_supervised")
    config.batch_size = 8
    config.model.update(
        {"patch_size": 7, "embed_dim": 16, "depth": DEPTH, "num_heads": 2, "positions": "learned"}
    )
    config.model.class_token = True
    config.optimizer.update({"warmup_epochs": 0.0, "eps": 1e-6, **changes})
    return config


def stated(path):
    """The factor of one parameter, and of each layer of a stacked one (BEiT's and MAE's rule)."""
    if path.startswith("encoder/transformer/blocks/"):
        return [DECAY ** (DEPTH + 1 - layer) for layer in range(1, DEPTH + 1)]
    if path.startswith(("encoder/patch_embed/", "encoder/pos_embed", "encoder/cls_token")):
        return DECAY ** (DEPTH + 1)
    assert path.startswith(("encoder/transformer/norm/", "head/")), path
    return 1.0


def by_path(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(x) for p, x in leaves}


def test_one_step_moves_each_layer_by_its_share_of_what_it_would():
    batch = {
        "image": np.random.default_rng(0).integers(0, 256, (8, 28, 28, 3)).astype(np.uint8),
        "label": np.arange(8, dtype=np.int32),
    }
    moved = {}
    for decay in (1.0, DECAY):
        config = resolve(supervised(layer_decay=decay, weight_decay=0.3))
        setup = set_up(
            config,
            make_objective(config),
            steps_per_epoch=10,
            devices=jax.devices()[:1],
            donate=False,
        )
        state = setup.create()
        # The head starts as zeros, which pass no gradient on.
        head = jax.tree.map(
            lambda x: np.asarray(x) + np.float32(0.1) * np.arange(10, dtype=np.float32),
            state.params["head"],
        )
        state = state._replace(params={**state.params, "head": head})
        after, _ = setup.step(state, batch)
        before, after = by_path(state.params), by_path(after.params)
        moved[decay] = {path: after[path] - before[path] for path in before}
    for path, whole in moved[1.0].items():
        assert np.any(whole), path
        factor = np.reshape(stated(path), (-1, *[1] * (whole.ndim - 1)))
        np.testing.assert_allclose(moved[DECAY][path], factor * whole, atol=3e-7, err_msg=path)


@pytest.mark.parametrize("scan_layers", [True, False])
def test_blocks_in_a_loop_and_unrolled_have_the_same_factors(scan_layers):
    mapping = supervised()
    mapping.compute.scan_layers = scan_layers
    objective = make_objective(resolve(mapping))
    params = jax.eval_shape(objective.init, jax.random.key(0))
    for path, factor in by_path(layer_factors(params, DECAY, objective)).items():
        np.testing.assert_allclose(factor.ravel(), np.ravel(stated(path)), rtol=1e-6, err_msg=path)


def test_only_the_encoder_of_an_objective_is_slowed(tiny):
    config = resolve(tiny)
    objective = make_objective(config)
    params = jax.eval_shape(objective.init, jax.random.key(0))
    factors = by_path(layer_factors(params, 0.5, objective))
    assert {path: f.max() for path, f in factors.items() if path.startswith("predictor")} == {
        path: 1.0 for path in factors if path.startswith("predictor")
    }
    blocks = factors["encoder/transformer/blocks/mlp/fc1/kernel"]
    np.testing.assert_array_equal(blocks.ravel(), [0.25, 0.5])


def test_an_objective_without_an_encoder_is_refused(tiny):
    config = resolve(tiny)
    objective = make_objective(config)
    without = objective._replace(encoders={"queue": ("objective_state", "queue")})
    params = jax.eval_shape(objective.init, jax.random.key(0))
    with pytest.raises(UserError, match=r"layer_decay = 0\.5: must be 1\.0 for an objective that"):
        layer_factors(params, 0.5, without)
    tiny.optimizer.layer_decay = 0.0
    with pytest.raises(UserError, match=r"layer_decay = 0\.0: must lie in 0\.\.1, above 0"):
        resolve(tiny)
