import dataclasses
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ijepa_loss, load_config_file
from jax.sharding import AxisType

from jepa_jax.batch.spec import BatchSpec
from jepa_jax.config import resolve
from jepa_jax.objectives.ema import follow_parameters
from jepa_jax.objectives.objective import Objective
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training.optimizer import make_optimizer
from jepa_jax.training.schedules import Schedules
from jepa_jax.training.sharding import tree_shardings
from jepa_jax.training.state import TrainState, state_creator
from jepa_jax.training.step import make_train_step

SEED = 3
SCHEDULES = Schedules(
    learning_rate=lambda step: 1e-2 / (1.0 + step),
    weight_decay=lambda step: 0.1 + 0.1 * step,
    horizon=100.0,
)


def momentum_at(step):
    return 0.9 + 0.01 * step


def line_objective():
    """An objective small enough to differentiate by hand: no network, no images.

    The loss is the mean over examples of (x . kernel + bias - x . target kernel)^2 / 2.
    """

    def loss(params, state, batch, key, clock):
        del key
        line, target = params["encoder"], state.target
        difference = batch["x"] @ (line["kernel"] - target["kernel"]) + line["bias"]
        return 0.5 * jnp.mean(difference**2), {"metrics": {"momentum": momentum_at(clock.step)}}

    return Objective(
        needs=BatchSpec(views=()),
        init=lambda key: {
            "encoder": {"kernel": jax.random.normal(key, (3,)), "bias": jnp.ones(())}
        },
        loss=loss,
        state=lambda horizon: follow_parameters(momentum_at, lambda params: params["encoder"]),
        encoders={"target_encoder": ("objective_state", "target")},
        encode=lambda weights, images: images,
        flops=lambda shapes: {},
    )


def set_up(objective, config, mesh, accumulation_steps=1):
    """The compiled step, and a function that makes the state before step 0."""
    optimizer = make_optimizer(config.optimizer, SCHEDULES)
    arguments = {"seed": SEED, "mesh": mesh}
    create = state_creator(objective, optimizer, horizon=100.0, seed=SEED)
    shardings = tree_shardings(jax.eval_shape(create), mesh)
    start = jax.jit(create, out_shardings=shardings)()
    step = make_train_step(
        objective,
        optimizer,
        SCHEDULES,
        start,
        accumulation_steps=accumulation_steps,
        **arguments,
    )
    return step, lambda: jax.tree.map(jnp.copy, start)  # the step donates what it is given


@pytest.fixture(scope="module")
def config():
    config = load_config_file("fashion_mnist")
    config.data.image_size = (12, 16)  # a 3 x 4 grid
    config.model.update({"embed_dim": 8, "depth": 2, "num_heads": 2})
    config.compute.scan_layers = True
    config.objective.predictor.update({"embed_dim": 8, "depth": 1, "num_heads": 2})
    config.objective.masks.context_tokens = 4
    return resolve(config)


@pytest.fixture(scope="module")
def line(config, one_device):
    return set_up(line_objective(), config, one_device)


@pytest.fixture(scope="module")
def lines_batch():
    return {"x": jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)}


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    blocks = [
        [rng.choice(12, size=4, replace=False), *rng.choice(12, size=(2, 3), replace=False)]
        for _ in range(8)
    ]
    context, *targets = zip(*blocks, strict=True)
    return {
        "image": jnp.asarray(rng.normal(size=(8, 12, 16, 3)), jnp.float32),
        "context_index": jnp.asarray(np.sort(context), jnp.int32),  # [B, K]
        "target_index": jnp.asarray(np.sort(targets).swapaxes(0, 1), jnp.int32),  # [B, M, T]
    }


@pytest.fixture(scope="module")
def ijepa(config, one_device):
    return set_up(make_objective(config), config, one_device)


@pytest.fixture(scope="module")
def after_one_step(ijepa, batch):
    step, start = ijepa
    return jax.device_get(step(start(), batch))


def assert_trees_close(ours, expected, tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        ours,
        expected,
    )


def test_three_steps_of_any_objective_equal_numpy(line, lines_batch, config):
    step, start = line
    state = start()
    x = np.asarray(lines_batch["x"], np.float64)
    params = {name: np.asarray(p, np.float64) for name, p in state.params["encoder"].items()}
    target = dict(params)
    first, second = ({name: np.zeros_like(p) for name, p in params.items()} for _ in range(2))
    b1, b2, eps = config.optimizer.b1, config.optimizer.b2, config.optimizer.eps
    for n in range(3):
        difference = x @ (params["kernel"] - target["kernel"]) + params["bias"]
        loss = np.mean(difference**2) / 2
        gradient = {"kernel": difference @ x / len(x), "bias": np.mean(difference)}
        lr, decay, m = 1e-2 / (1 + n), 0.1 + 0.1 * n, 0.9 + 0.01 * n
        for name, g in gradient.items():
            first[name] = b1 * first[name] + (1 - b1) * g
            second[name] = b2 * second[name] + (1 - b2) * g**2
            adam = first[name] / (1 - b1 ** (n + 1))
            adam = adam / (np.sqrt(second[name] / (1 - b2 ** (n + 1))) + eps)
            decayed = decay * params[name] if name == "kernel" else 0.0
            params[name] = params[name] - lr * (adam + decayed)
            target[name] = m * target[name] + (1 - m) * params[name]
        expected = {
            "loss": loss,
            "lr": lr,
            "weight_decay": decay,
            "momentum": m,
            "gradient_norm": np.sqrt(sum(np.sum(g**2) for g in gradient.values())),
            "skipped": 0.0,
        }

        state, metrics = step(state, lines_batch)
        assert metrics.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
        assert state.step == n + 1
        assert_trees_close(state.params["encoder"], params, 1e-5)
        assert_trees_close(state.objective_state.target, target, 1e-5)


def test_the_loss_and_gradient_of_a_step_are_those_of_the_objective(
    config, ijepa, batch, after_one_step
):
    _, start = ijepa
    state, objective = start(), make_objective(config)
    loss, gradient = jax.jit(jax.value_and_grad(ijepa_loss(objective)))(
        state.params, state.objective_state.target, batch, jax.random.key(0)
    )
    _, metrics = after_one_step
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    squares = [np.sum(np.asarray(g, np.float64) ** 2) for g in jax.tree.leaves(gradient)]
    np.testing.assert_allclose(metrics["gradient_norm"], np.sqrt(sum(squares)), rtol=1e-5)


def test_four_micro_batches_equal_the_full_batch(config, one_device, batch, after_one_step):
    step, start = set_up(make_objective(config), config, one_device, accumulation_steps=4)
    state, metrics = step(start(), batch)
    expected_state, expected_metrics = after_one_step
    assert_trees_close(metrics, expected_metrics, 1e-6)
    # Adam's first step divides a gradient by its own size: compare what it has stored of it.
    moments, expected_moments = state.optimizer_state[0], expected_state.optimizer_state[0]
    assert_trees_close(moments.mu, expected_moments.mu, 1e-6)
    assert max(np.abs(m).max() for m in jax.tree.leaves(expected_moments.mu)) > 1e-4


def test_micro_batches_of_any_objective_equal_the_full_batch(config, one_device, line, lines_batch):
    step, start = set_up(line_objective(), config, one_device, accumulation_steps=4)
    whole_step, _ = line
    ours, expected = step(start(), lines_batch), whole_step(start(), lines_batch)
    assert_trees_close(ours, expected, 1e-6)


def test_the_state_is_donated(line, lines_batch):
    step, start = line
    state = start()
    step(state, lines_batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    # Every array that is kept is given back the memory it came in.
    text = step.lower(start(), lines_batch).compile().as_text()
    header = re.search(r"input_output_alias=\{(.*?)\}, entry", text).group(1)
    assert header.count("may-alias") == len(jax.tree.leaves(state))


def test_the_same_seed_and_batch_give_the_same_bits(ijepa, batch, after_one_step):
    step, start = ijepa
    chex.assert_trees_all_equal(step(start(), batch), after_one_step)


def test_states_of_one_seed_are_equal_and_of_two_seeds_differ(config, one_device):
    objective = line_objective()
    optimizer = make_optimizer(config.optimizer, SCHEDULES)
    one, same, other = (
        state_creator(objective, optimizer, horizon=1.0, seed=seed)() for seed in (0, 0, 1)
    )
    chex.assert_trees_all_equal(one, same)
    assert (one.params["encoder"]["kernel"] != other.params["encoder"]["kernel"]).all()
    assert isinstance(one, TrainState)
    assert one.step == 0
    chex.assert_trees_all_equal(one.objective_state.target, one.params["encoder"])


def test_case_48_all_floats_of_the_state_and_the_metrics_stay_float32_in_bfloat16(
    config, one_device, batch
):
    compute = dataclasses.replace(config.compute, dtype="bfloat16")
    config = dataclasses.replace(config, compute=compute)
    step, start = set_up(make_objective(config), config, one_device)
    state = start()
    for tree in (state, *jax.eval_shape(step, state, batch)):
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(tree)} <= {"float32", "int32"}
    assert "bf16" in step.lower(state, batch).as_text()  # the products nevertheless are


def lottery():
    """An objective whose loss is its random number."""
    line = line_objective()
    return line._replace(
        loss=lambda params, state, batch, key, clock: (
            jax.random.uniform(key) + 0.0 * line.loss(params, state, batch, key, clock)[0],
            {},
        )
    )


def test_the_key_of_a_step_is_a_function_of_the_seed_and_the_step(config, one_device, lines_batch):
    step, start = set_up(lottery(), config, one_device)
    state, drawn = start(), []
    for _ in range(4):
        state, metrics = step(state, lines_batch)
        drawn.append(float(metrics["loss"]))
    assert len(set(drawn)) == 4
    resumed = start()._replace(step=jax.device_put(jnp.int32(2), state.step.sharding))
    _, metrics = step(resumed, lines_batch)
    assert metrics["loss"] == drawn[2]


def test_micro_batches_draw_their_own_random_numbers(config, one_device, lines_batch):
    means = set()
    for parts in (1, 2, 4):  # were the numbers of all parts equal, their means would be too
        step, start = set_up(lottery(), config, one_device, accumulation_steps=parts)
        _, metrics = step(start(), lines_batch)
        means.add(float(metrics["loss"]))
    assert len(means) == 3


def test_a_step_is_traced_once_however_often_it_is_taken(config, one_device, lines_batch):
    """Were it traced at each call, chex would raise: that would be a compilation a step."""
    line = line_objective()
    traced = chex.assert_max_traces(line.loss, n=1)
    step, start = set_up(line._replace(loss=traced), config, one_device)
    state = start()
    for _ in range(3):
        state, _ = step(state, lines_batch)
    with pytest.raises(AssertionError, match="traced > 1 times"):
        step(state, {"x": lines_batch["x"][:2]})  # another shape
    chex.clear_trace_counter()


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e30])  # the square of the last is infinite
def test_case_44_45_a_step_that_is_not_finite_changes_nothing_but_the_counters(
    config, lines_batch, devices, poison
):
    mesh = jax.make_mesh(
        (devices, 1, 1),
        ("data", "fsdp", "tensor"),
        axis_types=(AxisType.Auto,) * 3,
        devices=jax.devices()[:devices],
    )
    step, start = set_up(line_objective(), config, mesh)
    state, metrics = step(start(), lines_batch)
    assert metrics["skipped"] == 0
    before = jax.device_get(state)
    bad = {"x": lines_batch["x"].at[5, 1].set(poison)}  # one example, on one device
    after, metrics = jax.device_get(step(state, bad))
    assert metrics["skipped"] == 1
    assert not np.isfinite(metrics["loss"])
    for old, new in zip(*map(jax.tree.leaves, (before, after)), strict=True):
        np.testing.assert_array_equal(new, old + 1 if old.dtype == np.int32 else old)
    state, metrics = step(after, lines_batch)
    assert metrics["skipped"] == 0
    np.testing.assert_allclose(metrics["lr"], 1e-2 / 3, rtol=1e-6)  # of step 2
    old, new = (jax.device_get(x).params["encoder"]["kernel"] for x in (before, state))
    assert not np.array_equal(old, new)
