from jepa_jax.training.periods import Timer, due


def test_a_period_of_none_never_comes():
    assert not any(due(step, None) for step in range(1, 100))
    assert [step for step in range(1, 10) if due(step, 3)] == [3, 6, 9]


def test_a_timer_is_due_from_its_minutes_on_until_it_is_reset():
    now = 1000.0
    timer = Timer(10.0, clock=lambda: now)
    assert not timer.due()
    now += 599.0
    assert not timer.due()
    now += 1.0
    assert timer.due()
    assert timer.due()
    timer.reset()
    assert not timer.due()
    assert not Timer(None, clock=lambda: now).due()
