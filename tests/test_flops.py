"""The count of a step's arithmetic, against XLA's own and against the published sizes' roofline."""

import jax
import pytest
from conftest import load_config_file

from jepa_jax.config import resolve
from jepa_jax.data.pipeline import mask_sampler
from jepa_jax.objectives.ijepa import make_objective
from jepa_jax.training.flops import step_flops
from jepa_jax.training.optimizer import make_optimizer
from jepa_jax.training.schedules import make_schedules
from jepa_jax.training.step import abstract_state, make_train_step

T = 12


@pytest.fixture(scope="module")
def config():
    """Wide enough that matrix products are nearly everything, on a 6 x 6 grid; in float32."""
    config = load_config_file("fashion_mnist")
    config.batch_size = 16
    config.data.image_size = (48, 48)
    config.model.update({"patch_size": 8, "embed_dim": 384, "depth": 2, "num_heads": 2})
    config.model.mlp_ratio = 3.0
    config.predictor.update({"embed_dim": 256, "depth": 1, "num_heads": 2})
    config.masks.context_tokens = 12
    return resolve(config)


def xla_flops(config, mesh):
    """What XLA counts in the step's program before any optimisation, with its blocks unrolled."""
    objective, schedules = make_objective(config), make_schedules(config, 100)
    optimizer = make_optimizer(config.optimizer, schedules, objective.target_of)
    state = abstract_state(objective, optimizer, mesh=mesh)
    step = make_train_step(
        objective, optimizer, schedules, state, seed=0, accumulation_steps=1, mesh=mesh
    )
    B, K, M = config.batch_size, config.masks.context_tokens, config.masks.num_targets
    batch = {
        "image": jax.ShapeDtypeStruct((B, *config.data.image_size, 3), "float32"),
        "context_index": jax.ShapeDtypeStruct((B, K), "int32"),
        "target_index": jax.ShapeDtypeStruct((B, M, T), "int32"),
    }
    updated = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    return step.lower(state, batch).cost_analysis()["flops"], updated


def test_xla_counts_the_same_and_a_little_for_what_is_left_out(config, one_device):
    counted, parameters = xla_flops(config, one_device)
    # XLA also counts what goes element by element: LayerNorm, softmax and GELU, about 2 % at this
    # width, and the update, 25 operations or so for each parameter whatever the batch.
    ours = config.batch_size * step_flops(config, {T: 1.0}).total
    assert ours < counted < 1.04 * ours + 30 * parameters
    assert parameters * 30 < 0.04 * ours


def test_a_step_s_count_is_the_mean_over_its_target_lengths(config):
    def predictor(lengths):
        return step_flops(config, lengths).predictor

    assert predictor({8: 0.25, 12: 0.75}) == pytest.approx(
        0.25 * predictor({8: 1.0}) + 0.75 * predictor({12: 1.0})
    )
    assert predictor({12: 1.0}) > predictor({8: 1.0})


@pytest.mark.parametrize(
    ("name", "gigaflops"),
    # Worked out by hand, with 24 D^2 + 4 n D a token and block, and the mean target length in place
    # of the mean over lengths. It embeds all N patches for the context, and with an image gradient;
    # its predictor's last block puts out all tokens.
    [("in1k_vitb16_ep600", 84.5), ("in1k_vitl16_ep600", 261.6), ("in1k_vith14_ep300", 658.6)],
)
def test_published_sizes_cost_what_the_roofline_says(name, gigaflops):
    config = resolve(load_config_file(name))
    lengths = mask_sampler(config).target_lengths()
    count = step_flops(config, lengths)
    # There, 2 D^2 each for the context's queries and outputs and 16 D^2 for its MLP could be saved.
    M, K, D = config.masks.num_targets, config.masks.context_tokens, config.predictor.embed_dim
    tokens = K + sum(T * share for T, share in lengths.items())
    gigaflops -= 3 * M * K * (20 * D**2 + 4 * tokens * D) / 1e9
    assert count.total / 1e9 == pytest.approx(gigaflops, rel=0.007)
    assert count.total / 1e9 < gigaflops
