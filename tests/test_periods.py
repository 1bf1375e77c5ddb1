import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from jepa_jax.training.periods import Timer, due


def test_a_period_of_none_never_comes():
    assert not any(due(step, None) for step in range(1, 100))
    assert [step for step in range(1, 10) if due(step, 3)] == [3, 6, 9]


def test_a_timer_is_due_from_its_minutes_on_until_it_is_reset():
    now = 1000.0
    timer = Timer(10.0, clock=lambda: now)
    assert not timer.due(1)
    now += 599.0
    assert not timer.due(2)
    now += 1.0
    assert timer.due(3)
    assert timer.due(4)
    timer.reset()
    assert not timer.due(5)
    assert not Timer(None, clock=lambda: now).due(5)


@pytest.mark.parametrize("seconds", [0.1, 10.0, 700.0])
def test_of_several_processes_the_first_is_asked_in_time_but_not_at_every_step(
    monkeypatch, seconds
):
    """On steps of some length; the messages that process 0 sends are counted."""
    now, asked = 0.0, []

    def broadcast(answer):
        asked.append(now)
        return np.asarray(answer)

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", broadcast)
    timer, saved = Timer(10.0, clock=lambda: now), []
    for step in range(1, 20_001):
        now = step * seconds
        if timer.due(step):
            saved.append(now)
            timer.reset()
        if len(saved) == 3:
            break
    between = np.diff([0.0, *saved])
    assert np.all((between >= 600.0) & (between <= 600.0 + 2 * max(seconds, 0.1 * 50)))
    assert len(asked) <= 3 + step / (50 if seconds < 1 else 1) * 1.2
