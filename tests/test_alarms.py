"""Alarms: loss spikes keep the step before them, explosion and collapse end with exit code 3."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import stream_of

from jepa_jax.config import resolve
from jepa_jax.data.sources import array_source
from jepa_jax.errors import StoppedRunError
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training import checkpoint
from jepa_jax.training.alarms import LossWatch, before_spikes, end_of
from jepa_jax.training.loop import train


def spikes(losses):
    """(number of the loss, ratio) of each spike."""
    watch = LossWatch()
    seen = [(number, watch.see(float(loss))) for number, loss in enumerate(losses)]
    return [(number, ratio) for number, ratio in seen if ratio is not None]


def test_a_loss_far_above_the_median_of_those_before_is_a_spike():
    rng = np.random.default_rng(0)
    losses = np.exp(rng.normal(0, 0.05, 600)) * np.linspace(1.0, 3.0, 600)  # it may rise, slowly
    assert spikes(losses) == []
    losses[400:403] *= 5
    found = spikes(losses)
    assert [number for number, _ in found] == [400, 401, 402]
    expected = losses[400] / np.median(losses[200:400])
    np.testing.assert_allclose(found[0][1], expected, rtol=1e-3)
    losses[400:403] *= 0.6  # three times
    assert spikes(losses) == []


RECORDED = json.loads((pathlib.Path(__file__).parent / "data" / "losses.json").read_text())


@pytest.mark.parametrize("objective", RECORDED)
def test_runs_that_went_well_have_no_spikes(objective):
    """The first steps of the quickstart and of each configs/fashion_mnist_*.py."""
    losses = np.array(RECORDED[objective])
    assert spikes(losses) == []
    for at in (20, len(losses) - 1):
        spoiled = losses.copy()
        spoiled[at] *= 8
        assert [number for number, _ in spikes(spoiled)] == [at]


def test_losses_that_differ_much_from_step_to_step_are_no_spikes():
    """A classifier's at the end of its training, near zero."""
    losses = np.exp(np.random.default_rng(1).normal(-5, 1.0, 1000))
    assert spikes(losses) == []


def test_a_few_losses_are_enough_to_see_an_explosion():
    """Four times the largest, since the first ones say little of what is usual."""
    assert spikes([1.0, 0.9, 3.9, 15.5, 179.0]) == [(4, pytest.approx(179 / np.sqrt(3.9)))]
    assert spikes([1.0, 0.64, 0.64, 4.1]) == [(3, pytest.approx(4.1 / 0.64))]


def test_the_checkpoints_before_the_last_three_spikes_are_kept():
    steps = [10, 20, 30, 40, 50]
    assert before_spikes(steps, []) == set()
    assert before_spikes(steps, [10]) == set()  # nothing is before it
    assert before_spikes(steps, [20, 31, 33]) == {10, 30}
    assert before_spikes(steps, [11, 22, 33, 44, 55]) == {30, 40, 50}


def row(rank, cosine):
    return {
        "step": 1,
        "effective_rank": rank,
        "feature_cosine": cosine,
        "position_share": 0.4,
    }


def test_the_end_of_a_run_is_judged():
    assert end_of([], high_for=0, ceiling=64) is None
    assert end_of([row(30.0, 0.3)] * 3, high_for=0, ceiling=64) is None
    assert "the last 3 steps are a spike" in str(end_of([], high_for=3, ceiling=64))
    assert "have collapsed" in str(end_of([row(1.01, 0.999)] * 3, high_for=0, ceiling=64))


def start(tiny, workdir, changed, **optimizer):
    """Twenty steps with an objective that `changed` makes of a good one."""
    tiny.objective.masks.target_scale = (0.25, 0.25)
    tiny.objective.masks.target_aspect_ratio = (1.0, 1.0)
    tiny.optimizer.update({"lr": 1e-3, "warmup_epochs": 0.5, **optimizer})
    tiny.logging.update({"every_steps": 1, "diagnostics_every_steps": 4, "knn_every_steps": None})
    tiny.checkpoint.update({"every_steps": 2, "keep_last": 2})
    config = resolve(tiny)
    images = np.random.default_rng(0).integers(0, 256, (320, 28, 28, 1), np.uint8)
    source = array_source(images, np.zeros(320, np.int64), ("",), (28, 28))
    objective = changed(make_objective(config))
    return train(config, workdir, objective=objective, stream=stream_of(config, source))


def louder(steps):
    """The loss of these steps a thousand times as large, and its gradient as it is."""

    def changed(objective):
        def loss(params, state, batch, key, clock):
            value, out = objective.loss(params, state, batch, key, clock)
            bad = jnp.isin(clock.step, jnp.array([step - 1 for step in steps]))
            return value + jnp.where(bad, 999.0, 0.0), out

        return objective._replace(loss=loss)

    return changed


def saved(workdir):
    return {int(path.name) for path in (workdir / "checkpoints").iterdir()}


def test_case_46_spikes_are_told_and_keep_the_checkpoints_before_them(tiny, tmp_path, caplog):
    """The second one lasts until the run ends, which is saved then, and has exit code 3."""
    with pytest.raises(StoppedRunError, match=r"all 20 steps are taken and saved, but .*exploded"):
        start(tiny, tmp_path, louder((7, 8, 15, 16, 17, 18, 19, 20)))
    assert saved(tmp_path) == {6, 14, 18, 20}
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    spikes = [row for row in rows if "loss_spike" in row]
    assert [row["step"] for row in spikes] == [7, 15]
    assert all(row["loss_spike"] > 100 for row in spikes)
    assert "ALARM: the loss of step 7 is" in caplog.text
    assert caplog.text.count("ALARM") == 2


def test_case_46_an_explosion_stops_the_run_and_names_the_last_good_checkpoint(tiny, tmp_path):
    with pytest.raises(StoppedRunError, match=r"max_spike_steps = 3 steps; .*checkpoints/10") as e:
        start(tiny, tmp_path, louder(range(11, 21)), max_spike_steps=3)
    assert e.value.exit_code == 3
    assert 10 in saved(tmp_path)
    # The same command goes on from the newest one, and does not take the explosion for usual.
    with pytest.raises(StoppedRunError, match=r"max_spike_steps = 3 steps; .*checkpoints/10"):
        start(tiny, tmp_path, louder(range(11, 21)), max_spike_steps=3)


def test_case_46_a_learning_rate_a_thousand_times_too_high_is_noticed(tiny, tmp_path, caplog):
    start(tiny, tmp_path, lambda objective: objective, lr=1.5, start_lr=0.2)
    assert "ALARM: the loss of step" in caplog.text


def test_case_47_collapsed_features_raise_an_alarm_and_end_with_exit_code_3(tiny, tmp_path, caplog):
    def collapsed(objective):
        def encode(weights, images):
            return 1.0 + 1e-4 * objective.encode(weights, images)

        return objective._replace(encode=encode)

    with pytest.raises(StoppedRunError, match="its features have collapsed") as ended:
        start(tiny, tmp_path, collapsed)
    assert ended.value.exit_code == 3
    assert caplog.text.count("ALARM") == 1
    assert "ALARM: step 12: the features are collapsed, measured 3 times" in caplog.text
    assert checkpoint.latest_step(tmp_path) == 20
