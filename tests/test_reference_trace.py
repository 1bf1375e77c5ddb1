"""Six recorded training steps of the reference, taken again by ours.

Another recording is put through the same test by naming its folder in JEPA_TRACE_DIR. Run with `-s`
to see the largest deviations.
"""

import os
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ijepa_loss
from reference_trace import Trace, config_of, encoder_to_ours, predictor_to_ours

from jepa_jax.config import to_dict
from jepa_jax.convert import official_to_orbax, orbax_to_official
from jepa_jax.models.positions import sincos_positions
from jepa_jax.models.predictor import make_predictor
from jepa_jax.models.vision_transformer import make_encoder
from jepa_jax.objectives.ema import EmaState
from jepa_jax.objectives.ijepa import prediction_loss, target_tokens
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training import checkpoint
from jepa_jax.training.resume import check_resumable
from jepa_jax.training.setup import set_up
from jepa_jax.training.state import TrainState

BUNDLED = pathlib.Path(__file__).parent / "data" / "reference_tiny"


@pytest.fixture(scope="module")
def trace() -> Trace:
    return Trace(pathlib.Path(os.environ.get("JEPA_TRACE_DIR") or BUNDLED))


@pytest.fixture(scope="module")
def config(trace):
    return config_of(trace)


@pytest.fixture(scope="module")
def start(trace):
    """Parameters before step 0: ours, and of the target encoder."""
    heads = trace.meta["num_heads"]
    params = {
        "encoder": encoder_to_ours(trace.start["encoder"], heads),
        "predictor": predictor_to_ours(trace.start["predictor"], heads),
    }
    target = encoder_to_ours(trace.start["target_encoder"], heads)
    return jax.tree.map(jnp.asarray, (params, target))


def batch_of(trace, step):
    names = ("image", "context_index", "target_index")
    return {name: jnp.asarray(trace.arrays[f"step{step}/{name}"]) for name in names}


@pytest.fixture(scope="module")
def training(trace, config, one_device):
    """The public train step, the optimizer, and the shapes of the state, on one device."""
    objective = make_objective(config)
    epoch = trace.meta["iterations_per_epoch"]
    return set_up(config, objective, steps_per_epoch=epoch, mesh=one_device)


@pytest.fixture(scope="module")
def replay(trace, start, training):
    """All recorded steps: metrics per step, and the last state."""
    metrics, state = [], state_before_step_0(start, training)
    for step in range(trace.meta["steps"]):
        state, measured = training.step(state, batch_of(trace, step))
        metrics.append(jax.device_get(measured))
    return metrics, jax.device_get(state)


def state_before_step_0(start, training):
    params, target = jax.tree.map(jnp.copy, start)  # the step donates its state
    optimizer_state = jax.jit(training.optimizer.init)(params)
    average = EmaState(step=jnp.zeros([], jnp.int32), target=target)
    state = TrainState(jnp.zeros([], jnp.int32), params, optimizer_state, average)
    assert jax.tree.structure(state) == jax.tree.structure(training.like)
    return state


def report(what, deviation, allowed):
    print(f"\n{what}: largest deviation {deviation:.2e}, allowed {allowed:.0e}", end="")
    assert deviation <= allowed


def test_positions_equal_the_recorded_tables(trace, config):
    for network, name in (("encoder", "pos_embed"), ("predictor", "predictor_pos_embed")):
        recorded = trace.start[network][name][0]
        report(
            name, np.abs(sincos_positions(config.grid, recorded.shape[1]) - recorded).max(), 1e-6
        )


def test_outputs_of_all_three_networks_equal_the_recording(trace, config, start):
    params, target = start
    batch, arrays = batch_of(trace, 0), trace.arrays
    encode = jax.jit(make_encoder(config).apply)
    predictor = make_predictor(
        config, config.objective.predictor, output_dim=config.model.embed_dim
    )
    predict = jax.jit(predictor.apply)
    target_output = encode({"params": target}, batch["image"])
    context = encode({"params": params["encoder"]}, batch["image"], batch["context_index"])
    prediction = predict(
        {"params": params["predictor"]}, context, batch["context_index"], batch["target_index"]
    )
    for name, ours in (
        ("target_encoder_output", target_output),
        ("target_normalised", target_tokens(target_output)),
        ("context_encoder_output", context),
        ("predictor_output", prediction),
    ):
        report(name, np.abs(ours - arrays[name]).max(), 1e-5)


def test_both_losses_equal_the_recording(trace):
    batch, arrays = batch_of(trace, 0), trace.arrays
    index = batch["target_index"]
    example = np.arange(len(index))[:, None, None]
    targets = jnp.asarray(arrays["target_normalised"][example, index])
    for kind, name in (("smooth_l1", "loss_smooth_l1"), ("l2", "loss_mse")):
        recorded = arrays[f"step0/{name}"]
        ours = prediction_loss(jnp.asarray(arrays["predictor_output"]), targets, kind)
        report(name, abs(ours - recorded) / recorded, 1e-6)


def test_gradients_of_step_0_equal_the_recording(trace, config, start):
    params, target = start
    objective = make_objective(config)
    gradient = jax.jit(jax.grad(ijepa_loss(objective)))
    ours = gradient(params, target, batch_of(trace, 0), jax.random.key(0))
    heads = trace.meta["num_heads"]
    recorded = {
        "encoder": encoder_to_ours(trace.gradient("encoder"), heads),
        "predictor": predictor_to_ours(trace.gradient("predictor"), heads),
    }
    deviation = jax.tree.map(lambda a, b: np.abs(a - b).max() / np.abs(b).max(), ours, recorded)
    report("gradient / its scale", max(jax.tree.leaves(deviation)), 1e-5)


def test_losses_of_all_steps_equal_the_recording(trace, replay):
    recorded = [trace.arrays[f"step{i}/loss_smooth_l1"] for i in range(trace.meta["steps"])]
    ours = [metrics["loss"] for metrics in replay[0]]
    report("loss, relative", np.max(np.abs(np.array(ours) / recorded - 1)), 1e-6)


@pytest.mark.parametrize("name", ["lr", "weight_decay", "momentum"])
def test_schedules_equal_the_recording(trace, replay, name):
    recorded = np.array([trace.arrays[f"step{i}/{name}"] for i in range(trace.meta["steps"])])
    ours = np.array([metrics[name] for metrics in replay[0]], np.float64)
    report(f"{name}, absolute", np.max(np.abs(ours - recorded)), 1e-7)


def test_parameters_after_the_last_step_equal_the_recording(trace, replay):
    heads, state = trace.meta["num_heads"], replay[1]
    ours = {**state.params, "target_encoder": state.objective_state.target}
    to_ours = {
        "encoder": encoder_to_ours,
        "predictor": predictor_to_ours,
        "target_encoder": encoder_to_ours,
    }
    for network, convert in to_ours.items():
        before, after = (convert(part[network], heads) for part in (trace.start, trace.end))
        deviation = jax.tree.map(lambda a, b: np.abs(a - b).max(), ours[network], after)
        report(f"{network}, absolute", max(jax.tree.leaves(deviation)), 1e-5)
        change = jax.tree.map(lambda a, b: np.abs(a - b).max(), after, before)
        relative = jax.tree.map(lambda d, c: d / c, deviation, change)
        report(f"{network}, share of its change", max(jax.tree.leaves(relative)), 2e-3)


def test_training_goes_on_from_a_converted_checkpoint_as_if_it_had_never_stopped(
    trace, config, start, training, replay, tmp_path
):
    """Steps 0 to 2 here, to the published format and back, then steps 3 to 5."""
    pytest.importorskip("torch")
    state = state_before_step_0(start, training)
    for step in range(3):
        state, _ = training.step(state, batch_of(trace, step))
    manager = checkpoint.make_manager(tmp_path / "run", config)
    checkpoint.save(manager, state, config, make_objective(config))
    manager.wait_until_finished()
    manager.close()

    orbax_to_official(tmp_path / "run", tmp_path / "middle.pth.tar", epoch=None)
    official_to_orbax(
        tmp_path / "middle.pth.tar",
        tmp_path / "converted",
        base=to_dict(config),
        base_is_given=True,
        num_heads=None,
        allow_partial=False,
        network=None,
    )
    folder = checkpoint.find(tmp_path / "converted")
    assert folder.name == "3"
    assert not check_resumable(folder, config)
    state = checkpoint.restore(folder, training.like, make_objective(config))
    metrics = []
    for step in range(3, trace.meta["steps"]):
        state, measured = training.step(state, batch_of(trace, step))
        metrics.append(jax.device_get(measured))
    chex.assert_trees_all_equal(metrics, replay[0][3:])
    chex.assert_trees_all_equal(jax.device_get(state), replay[1])
