"""The count of a step's arithmetic, against XLA's own and against the published sizes' roofline."""

import jax
import numpy as np
import pytest
from conftest import load_config_file

from jepa_jax.batch.masks import MultiBlock
from jepa_jax.config import resolve
from jepa_jax.objectives.registry import make_objective
from jepa_jax.planning.needs import flops_per_example
from jepa_jax.training.setup import set_up

T = 12


@pytest.fixture(scope="module")
def config():
    """Wide enough that matrix products are nearly everything, on a 6 x 6 grid; in float32."""
    config = load_config_file("fashion_mnist")
    config.batch_size = 16
    config.data.image_size = (48, 48)
    config.model.update({"patch_size": 8, "embed_dim": 384, "depth": 2, "num_heads": 2})
    config.model.mlp_ratio = 3.0
    config.objective.predictor.update({"embed_dim": 256, "depth": 1, "num_heads": 2})
    config.objective.masks.context_tokens = 12
    return resolve(config)


def shapes_of(config, targets):
    """Of a batch whose target blocks have that many patches."""
    B, masks = config.batch_size, config.objective.masks
    return {
        "image": jax.ShapeDtypeStruct((B, *config.data.image_size, 3), "float32"),
        "context_index": jax.ShapeDtypeStruct((B, masks.context_tokens), "int32"),
        "target_index": jax.ShapeDtypeStruct((B, masks.num_targets, targets), "int32"),
    }


def xla_flops(config, mesh):
    """What XLA counts in the step's program before any optimisation, with its blocks unrolled."""
    setup = set_up(config, make_objective(config), steps_per_epoch=100, mesh=mesh)
    updated = sum(leaf.size for leaf in jax.tree.leaves(setup.like.params))
    lowered = setup.step.lower(setup.like, shapes_of(config, T))
    return lowered.cost_analysis()["flops"], updated


def test_xla_counts_the_same_and_a_little_for_what_is_left_out(config, one_device):
    counted, parameters = xla_flops(config, one_device)
    # XLA also counts what goes element by element: LayerNorm, softmax and GELU, about 2 % at this
    # width, and the update, 25 operations or so for each parameter whatever the batch.
    per_image = make_objective(config).flops(shapes_of(config, T))
    ours = config.batch_size * sum(per_image.values())
    assert ours < counted < 1.04 * ours + 30 * parameters
    assert parameters * 30 < 0.04 * ours


def test_a_step_s_count_is_the_mean_over_its_target_lengths(config):
    objective = make_objective(config)
    shares = MultiBlock(config.objective.masks, config.grid).target_lengths()
    counts = {n: objective.flops(shapes_of(config, n)) for n in shares}
    assert len(shares) > 1
    mean = flops_per_example(objective, config.batch_size)
    assert mean.keys() == {"target", "context", "predictor"}
    for part, count in mean.items():
        assert count == pytest.approx(sum(p * counts[n][part] for n, p in shares.items()))
    predictor = [counts[n]["predictor"] for n in sorted(shares)]
    assert (np.diff(predictor) > 0).all()


@pytest.mark.parametrize(
    ("name", "gigaflops"),
    # Worked out by hand, with 24 D^2 + 4 n D a token and block, and the mean target length in place
    # of the mean over lengths. It embeds all N patches for the context, and with an image gradient;
    # its predictor's last block outputs all tokens.
    [("in1k_vitb16_ep600", 84.5), ("in1k_vitl16_ep600", 261.6), ("in1k_vith14_ep300", 658.6)],
)
def test_published_sizes_cost_what_the_roofline_says(name, gigaflops):
    config = resolve(load_config_file(name))
    masks, D = config.objective.masks, config.objective.predictor.embed_dim
    count = sum(flops_per_example(make_objective(config), config.batch_size).values())
    # There, 2 D^2 each for the context's queries and outputs and 16 D^2 for its MLP could be saved.
    M, K = masks.num_targets, masks.context_tokens
    lengths = MultiBlock(masks, config.grid).target_lengths()
    tokens = K + sum(T * share for T, share in lengths.items())
    gigaflops -= 3 * M * K * (20 * D**2 + 4 * tokens * D) / 1e9
    assert count / 1e9 == pytest.approx(gigaflops, rel=0.007)
    assert count / 1e9 < gigaflops
