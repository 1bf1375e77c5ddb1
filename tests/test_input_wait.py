"""The share of the time that training waits for data, on a clock that the test moves."""

import json
import re

import numpy as np
import pytest
from conftest import stream_of

from jepa_jax.config import resolve
from jepa_jax.data.sources import array_source
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training.input_wait import InputWait
from jepa_jax.training.loop import train


class Clock:
    """Seconds that go by only when something takes them."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def batches(self, seconds, number=10**6):
        for i in range(number):
            self.now += seconds
            yield i


def intervals(seconds_of_batch, seconds_of_step, steps, number):
    """The share and the advice after each of some intervals of steps."""
    clock = Clock()
    waits = InputWait(clock=clock)
    batches = waits.watched(clock.batches(seconds_of_batch))
    found = []
    for _ in range(number):
        for _ in range(steps):
            next(batches)
            clock.now += seconds_of_step
        share = waits.share()
        found.append((share, waits.advice(share)))
    return found


@pytest.mark.parametrize(
    ("batch", "step", "share"), [(1, 3, 0.25), (0, 4, 0.0), (4, 0, 1.0), (0.125, 3.875, 1 / 32)]
)
def test_the_share_is_that_of_the_batches(batch, step, share):
    assert [value for value, _ in intervals(batch, step, 5, 4)] == [share] * 4


def test_each_interval_is_measured_by_itself():
    clock = Clock()
    waits = InputWait(clock=clock)
    slow, fast = waits.watched(clock.batches(1)), waits.watched(clock.batches(0))
    next(slow)
    assert waits.share() == 1.0
    next(fast)
    clock.now += 5
    assert waits.share() == 0.0


def test_the_batches_are_the_same_and_end_where_they_ended():
    clock = Clock()
    assert list(InputWait(clock=clock).watched(clock.batches(1, 5))) == [0, 1, 2, 3, 4]


def test_a_slow_stream_is_told_of_after_the_first_interval_and_then_every_ten_minutes():
    advice = [text for _, text in intervals(10, 30, 1, 40)]  # 40 seconds an interval
    said = [i for i, text in enumerate(advice) if text]
    assert said == [1, 16, 31]  # 15 intervals are ten minutes
    assert "waits for data 25% of the time" in advice[1]
    for what in ("more CPU cores", "shards", "config.data.image_size"):
        assert what in advice[1]


def test_the_first_half_minute_is_let_pass_however_many_intervals_it_has():
    advice = [text for _, text in intervals(1, 1, 1, 20)]
    assert [i for i, text in enumerate(advice) if text] == [14]  # after 30 seconds


def test_a_fast_stream_is_never_told_of():
    assert not any(text for _, text in intervals(0.05, 1, 100, 20))  # 4.8 %
    assert any(text for _, text in intervals(0.06, 1, 100, 20))  # 5.7 %


@pytest.mark.parametrize("seconds", [0, 20])
def test_a_run_writes_the_share_and_says_it_where_it_matters(
    tiny, tmp_path, monkeypatch, capsys, seconds
):
    """A batch takes 0 or 20 seconds, and everything between two readings of the clock one."""
    tiny.epochs, tiny.logging.every_steps = 6, 1
    tiny.logging.update({"diagnostics_every_steps": None, "knn_every_steps": None})
    tiny.objective.masks.update({"target_scale": (0.25, 0.25), "target_aspect_ratio": (1.0, 1.0)})
    config, rng = resolve(tiny), np.random.default_rng(0)
    images = rng.integers(0, 256, (16, 28, 28, 1), np.uint8)
    stream = stream_of(config, array_source(images, None, (), (28, 28)))
    clock = Clock()

    def slow(start, end, rows):
        for batch in stream.batches(start, end, rows):
            clock.now += seconds
            yield batch

    class Watched(InputWait):
        def __init__(self):
            super().__init__(clock=clock)

        def share(self):
            clock.now += 5
            return super().share()

    monkeypatch.setattr("jepa_jax.training.run_log.InputWait", Watched)
    train(config, tmp_path, objective=make_objective(config), stream=stream._replace(batches=slow))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    said = capsys.readouterr().err
    assert len(rows) == 6
    if seconds == 0:
        assert [row["input_wait"] for row in rows] == [0.0] * 6
        assert "waits for data" not in said
    else:
        assert all(0.0 <= row["input_wait"] <= 1.0 for row in rows)
        # The numbers of steps are fetched late, but all six batches were waited for.
        assert max(row["input_wait"] for row in rows) > 0.7
        assert re.search(r"step \d/6 .*waits for data \d+%", said)
        assert said.count("training waits for data") == 1
