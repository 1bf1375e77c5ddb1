"""Whole runs through `train`: resuming, stopping, and what they leave on disk."""

import dataclasses
import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from conftest import stream_of, tiny_config
from PIL import Image

from jepa_jax.config import resolve
from jepa_jax.data.sources import array_source, open_source
from jepa_jax.errors import BadDataError, PreemptedError, StoppedRunError, UserError
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training import checkpoint
from jepa_jax.training.loop import train
from jepa_jax.training.setup import set_up
from jepa_jax.training.stalls import threads_at_work

STEPS_PER_EPOCH, LAST_STEP = 10, 20


@pytest.fixture(scope="module")
def source():
    """165 images of noise: ten batches of 16 an epoch, and five images left over."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (165, 28, 28, 1), np.uint8)
    return array_source(images, rng.integers(0, 10, 165), ("",) * 10, (28, 28))


def short_run(tiny, accumulation_steps=1, **checkpoint_fields):
    tiny.epochs = LAST_STEP // STEPS_PER_EPOCH
    tiny.objective.masks.target_scale = (0.25, 0.25)  # one size of block, one compiled step
    tiny.objective.masks.target_aspect_ratio = (1.0, 1.0)
    tiny.optimizer.accumulation_steps = accumulation_steps
    tiny.optimizer.update({"lr": 1e-3, "warmup_epochs": 0.5})
    tiny.model.drop_path_rate = 0.1  # so that the random keys have to resume too
    tiny.logging.update({"every_steps": 1, "diagnostics_every_steps": 4, "knn_every_steps": 1})
    tiny.logging.linear_every_steps = 3
    tiny.checkpoint.update({"every_steps": 1000, **checkpoint_fields})
    return resolve(tiny)


def start(config, workdir, source, *, stop_after=None, objective=None):
    """Trains; with `stop_after`, as if SIGTERM came during that step."""
    calls = []

    def online(weights, names):
        del weights
        calls.append(None)
        if len(calls) == stop_after:
            signal.raise_signal(signal.SIGTERM)
        return dict.fromkeys(names, 0.5)

    objective = objective or make_objective(config)
    stream = stream_of(config, source)
    return train(config, workdir, objective=objective, stream=stream, online=online)


def final_state(config, workdir):
    objective = make_objective(config)
    like = set_up(config, objective, steps_per_epoch=STEPS_PER_EPOCH).like
    return jax.device_get(checkpoint.restore(checkpoint.find(workdir), like, objective))


def rows(workdir):
    parsed = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timed = ("images_per_second", "input_wait")
    return [{k: v for k, v in row.items() if k not in timed} for row in parsed]


@pytest.mark.parametrize(
    ("accumulation_steps", "stops"),
    # The first step, in mid-epoch, between the epochs, before the last step.
    [(1, (1, 7, 10, 19)), (2, (13,))],
)
def test_case_06_13_14_50_a_run_cut_anywhere_ends_bitwise_as_one_in_one_go(
    tiny, tmp_path, source, accumulation_steps, stops
):
    config = short_run(tiny, accumulation_steps)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    result = start(config, whole, source)
    assert result["step"] == LAST_STEP
    assert np.isfinite(result["loss"])

    taken, first = 0, None
    for stop in stops:
        with pytest.raises(PreemptedError, match=f"after step {stop}") as _stopped:
            start(config, cut, source, stop_after=stop - taken)
        assert not threads_at_work()  # although the error's traceback still holds the loop
        assert checkpoint.latest_step(cut) == stop
        first = first or final_state(config, cut)
        taken = stop
    resumed = start(config, cut, source)
    assert resumed == result

    states = final_state(config, whole), final_state(config, cut)
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert rows(whole) == rows(cut)
    # States that never change would be equal too: parameters, target and moments.
    for a, b in zip(*map(jax.tree.leaves, (first, states[1])), strict=True):
        assert not np.array_equal(a, b)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, source):
    """A run that is at its end; its configuration and folder."""
    config = short_run(tiny_config(), every_steps=3, keep_last=2, keep_every_steps=6)
    workdir = tmp_path_factory.mktemp("finished")
    start(config, workdir, source)
    return config, workdir


@pytest.fixture(scope="module")
def begun(tmp_path_factory, source):
    """The folder of a run that was stopped after its first step."""
    workdir = tmp_path_factory.mktemp("begun")
    with pytest.raises(PreemptedError):
        start(short_run(tiny_config()), workdir, source, stop_after=1)
    return workdir


def test_case_14_a_finished_run_is_left_as_it_is(finished, source):
    config, workdir = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    assert start(config, workdir, source) == {"step": LAST_STEP, "loss": None}
    assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}


def test_checkpoints_are_kept_by_the_rules(finished):
    _, workdir = finished
    kept = {int(path.name) for path in (workdir / "checkpoints").iterdir()}
    assert kept == {6, 12, 18, 20}


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_case_44_a_loss_that_is_not_finite_stops_the_run(tiny, tmp_path, source, poison):
    """The loss is poisoned where a certain image is in the batch, all of whose pixels are 1."""
    tiny.optimizer.max_skipped_steps = 1
    config = short_run(tiny, every_steps=4)
    objective = make_objective(config)

    def load(index, crop, size):
        images, used = source.load(index, crop, size)
        marked = tf.where((index == 3)[:, None, None, None], tf.ones_like(images), images)
        return marked, used

    def loss(params, state, batch, key, clock):
        value, out = objective.loss(params, state, batch, key, clock)
        marked = jnp.any(jnp.all(batch["image"] == 1, axis=(1, 2, 3)))
        return value * jnp.where(marked, poison, 1.0), out

    poisoned = dataclasses.replace(source, load=load)
    with pytest.raises(StoppedRunError) as stopped:
        start(config, tmp_path, poisoned, objective=objective._replace(loss=loss))
    assert stopped.value.exit_code == 3
    written = rows(tmp_path)
    bad_step = max(row["step"] for row in written if "loss" in row) + 1
    assert f"the loss of step {bad_step} is {poison}" in str(stopped.value)
    assert all(np.isfinite(row["loss"]) for row in written if "loss" in row)
    last_good = checkpoint.latest_step(tmp_path)
    if last_good is None:
        assert bad_step <= 4
        assert "no checkpoint yet" in str(stopped.value)
    else:
        assert bad_step - 4 <= last_good < bad_step
        assert f"checkpoints/{last_good}" in str(stopped.value)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(final_state(config, tmp_path)))


def poisoned_gradient(config, steps):
    """The objective, with a gradient that is NaN at these steps, and a loss that is not."""
    objective = make_objective(config)

    def loss(params, state, batch, key, clock):
        value, out = objective.loss(params, state, batch, key, clock)
        bad = jnp.isin(clock.step, jnp.array([step - 1 for step in steps]))
        some = jax.tree.leaves(params)[0].sum()
        # Of value 0, and of gradient 0 or 0 / 0.
        nothing = jnp.sqrt(jnp.where(bad, 0.0 * some, 1.0)) - jnp.where(bad, 0.0, 1.0)
        return value + nothing, out

    return objective._replace(loss=loss)


@pytest.mark.parametrize("steps", [(9, 10), (20,)])  # a checkpoint's; the last one
def test_case_45_a_gradient_that_is_not_finite_changes_nothing_and_is_never_saved(
    tiny, tmp_path, source, steps, caplog
):
    config = short_run(tiny, every_steps=10, keep_last=5)
    result = start(config, tmp_path, source, objective=poisoned_gradient(config, steps))
    assert result["step"] == LAST_STEP
    assert np.isfinite(result["loss"])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(final_state(config, tmp_path)))
    skipped = [row["step"] for row in rows(tmp_path) if "skipped" in row]
    assert skipped == list(steps)
    losses = {row["step"] for row in rows(tmp_path) if "loss" in row}
    assert losses == set(range(1, LAST_STEP + 1)) - set(steps)
    assert f"of step {steps[0]} is" in caplog.text


def test_case_45_gradients_that_are_not_finite_in_a_row_stop_the_run_at_the_last_good_state(
    tiny, tmp_path, source
):
    config = short_run(tiny, every_steps=4)
    with pytest.raises(StoppedRunError, match=r"max_skipped_steps = 3; .*checkpoints/4") as stopped:
        start(config, tmp_path, source, objective=poisoned_gradient(config, (2, 3, 5, 6, 7)))
    assert stopped.value.exit_code == 3
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(final_state(config, tmp_path)))


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("model", "depth", 3),
        ("objective.masks", "context_tokens", 5),
        ("optimizer", "first_moment_dtype", "bfloat16"),
        (None, "seed", 1),
    ],
)
def test_a_workdir_of_another_run_is_refused(tiny, begun, source, section, field, value):
    short_run(tiny)
    node = tiny
    for name in section.split(".") if section else ():
        node = node[name]
    node[field] = value
    name = f"{section}.{field}" if section else field
    with pytest.raises(UserError, match=rf"config\.{name} = {value}: .* another --workdir"):
        start(resolve(tiny), begun, source)


def test_another_learning_rate_is_accepted_and_said(tiny, begun, tmp_path, source, caplog):
    shutil.copytree(begun, tmp_path / "run")
    short_run(tiny)
    tiny.optimizer.lr = 5e-4
    start(resolve(tiny), tmp_path / "run", source)
    assert "config.optimizer.lr was 0.001 and is 0.0005 from here on" in caplog.text


def test_diagnostics_and_probes_are_written_when_due(finished):
    _, workdir = finished
    written = rows(workdir)
    assert [row["step"] for row in written if "effective_rank" in row] == [4, 8, 12, 16, 20]
    probed = [row.keys() - {"step"} for row in written if "knn_accuracy" in row]
    assert probed == [  # in one row what is due at once
        {"knn_accuracy", "linear_accuracy"} if step % 3 == 0 else {"knn_accuracy"}
        for step in range(1, LAST_STEP + 1)
    ]
    names = {"loss", "lr", "weight_decay", "momentum", "gradient_norm", "parameter_norm"}
    assert all(names <= row.keys() for row in written if "knn_accuracy" not in row)
    assert list(workdir.glob("tensorboard/events*"))


def test_the_norm_of_the_parameters_is_that_after_the_step(finished):
    config, workdir = finished
    leaves = jax.tree.leaves(final_state(config, workdir).params)
    expected = np.sqrt(sum(np.sum(np.asarray(x, np.float64) ** 2) for x in leaves))
    (last,) = (row for row in rows(workdir) if row["step"] == LAST_STEP and "loss" in row)
    np.testing.assert_allclose(last["parameter_norm"], expected, rtol=1e-5)


def test_too_many_bad_images_stop_a_run_that_is_saved_and_goes_on_once_they_are_borne(
    tiny, tmp_path
):
    """A fifth of 160 are bad: eleven are more than ten, which a share of 1 % allows."""
    (tmp_path / "photos" / "train").mkdir(parents=True)
    for i in range(160):
        path = tmp_path / "photos" / "train" / f"{i:03}.png"
        Image.fromarray(np.full((28, 28, 3), i, np.uint8)).save(path)
        if i % 5 == 0:
            path.write_bytes(path.read_bytes()[:60])
    tiny.data.update({"source": "folder", "path": str(tmp_path / "photos")})

    def run(share):
        tiny.data.bad_share = share
        config = short_run(tiny)
        return start(config, tmp_path / "run", open_source(config.data, "train"))

    with pytest.raises(BadDataError, match=r"were bad, more than config.data.bad_share = 0.01"):
        run(0.01)
    stopped = checkpoint.latest_step(tmp_path / "run")
    assert 2 <= stopped <= 5
    assert run(0.3)["step"] == LAST_STEP
