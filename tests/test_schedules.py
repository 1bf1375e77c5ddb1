import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load_config_file
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_jax.config import EmaConfig, resolve
from jepa_jax.objectives.ema import momentum_at
from jepa_jax.training.schedules import make_schedules


def schedules_of(steps_per_epoch, *, epochs, batch_size=64, **optimizer):
    """The schedules as functions of all steps at once."""
    config = resolve(load_config_file("fashion_mnist"))
    config = dataclasses.replace(
        config,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=dataclasses.replace(config.optimizer, **optimizer),
    )
    return make_schedules(config, steps_per_epoch)


RATES = {"start_lr": 2e-4, "lr": 1e-3, "final_lr": 1e-6}
DECAYS = {"weight_decay": 0.04, "final_weight_decay": 0.4}


@pytest.mark.parametrize("ipe_scale", [1.0, 1.25])
def test_values_of_every_step_equal_the_published_formulas(ipe_scale):
    epochs, steps_per_epoch, warmup_epochs = 6, 20, 2.5
    schedules = schedules_of(
        steps_per_epoch,
        epochs=epochs,
        warmup_epochs=warmup_epochs,
        ipe_scale=ipe_scale,
        **RATES,
        **DECAYS,
    )
    total, warmup = int(ipe_scale * epochs * steps_per_epoch), 50
    # The published optimizer counts its steps from 1, and its momenta from 0.
    for step in range(epochs * steps_per_epoch):
        number = step + 1
        if number < warmup:
            lr = 2e-4 + (1e-3 - 2e-4) * number / warmup
        else:
            angle = math.pi * (number - warmup) / (total - warmup)
            lr = 1e-6 + (1e-3 - 1e-6) * (1 + math.cos(angle)) / 2
        decay = 0.4 - (0.4 - 0.04) * (1 + math.cos(math.pi * number / total)) / 2
        momentum = 0.996 + 0.004 * step / total
        np.testing.assert_allclose(
            schedules.learning_rate(jnp.int32(step)), lr, rtol=1e-5, atol=1e-9
        )
        np.testing.assert_allclose(schedules.weight_decay(jnp.int32(step)), decay, rtol=1e-5)
        ours = momentum_at(EmaConfig(), jnp.int32(step), schedules.horizon)
        np.testing.assert_allclose(ours, momentum, rtol=1e-6)


def test_the_peak_is_reached_exactly_at_the_end_of_the_warm_up():
    schedules = schedules_of(10, epochs=5, warmup_epochs=2.0, ipe_scale=1.0, **RATES)
    rates = np.asarray(schedules.learning_rate(jnp.arange(50)))
    assert rates.argmax() == 19
    np.testing.assert_allclose(rates[19], 1e-3, rtol=1e-6)
    np.testing.assert_allclose(rates[49], 1e-6, rtol=1e-4)  # the last step of training


def test_without_warm_up_the_cosine_begins_at_once():
    schedules = schedules_of(10, epochs=5, warmup_epochs=0.0, ipe_scale=1.0, **RATES)
    expected = [1e-6 + (1e-3 - 1e-6) * (1 + math.cos(math.pi * n / 50)) / 2 for n in range(1, 51)]
    rates = schedules.learning_rate(jnp.arange(50))
    np.testing.assert_allclose(rates, expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    ("reference", "factor"), [(None, 1.0), (256, 2.0), (1024, 0.5), (512, 1.0)]
)
def test_the_three_rates_scale_with_the_batch_and_nothing_else_does(reference, factor):
    settings = {"epochs": 4, "warmup_epochs": 1.0, "ipe_scale": 1.0, "batch_size": 512}
    plain = schedules_of(10, reference_batch_size=None, **settings, **RATES, **DECAYS)
    scaled = schedules_of(10, reference_batch_size=reference, **settings, **RATES, **DECAYS)
    steps = jnp.arange(40)
    np.testing.assert_allclose(
        scaled.learning_rate(steps), factor * plain.learning_rate(steps), rtol=1e-6
    )
    np.testing.assert_array_equal(scaled.weight_decay(steps), plain.weight_decay(steps))
    assert scaled.horizon == plain.horizon


def test_a_momentum_of_1_is_reached_at_the_stretched_horizon_alone():
    schedules = schedules_of(10, epochs=4, warmup_epochs=1.0, ipe_scale=1.25)
    last, horizon, beyond = (
        float(momentum_at(EmaConfig(), jnp.int32(n), schedules.horizon)) for n in (39, 50, 500)
    )
    np.testing.assert_allclose(last, 0.996 + 0.004 * 39 / 50, rtol=1e-6)
    assert horizon == beyond == 1.0


def test_values_are_the_same_within_a_compiled_function():
    schedules = schedules_of(10, epochs=4, warmup_epochs=1.0, ipe_scale=1.0, **RATES)
    compiled = jax.jit(lambda step: [schedule(step) for schedule in schedules[:2]])
    for step in (0, 5, 9, 10, 39):
        expected = [schedule(jnp.int32(step)) for schedule in schedules[:2]]
        np.testing.assert_allclose(compiled(jnp.int32(step)), expected, rtol=1e-6)


rate = st.floats(1e-8, 1.0)
share = st.floats(0.0, 1.0)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    epochs=st.integers(1, 1000),
    steps_per_epoch=st.integers(1, 5000),
    warmup_epochs=st.floats(0.0, 1200.0),  # longer than the run, too
    ipe_scale=st.floats(1.0, 2.0),
    rates=st.tuples(rate, rate, rate).map(sorted),
    decays=st.tuples(share, share),
)
def test_schedules_are_monotone_bounded_and_finite_even_beyond_the_horizon(
    epochs, steps_per_epoch, warmup_epochs, ipe_scale, rates, decays
):
    final, start, peak = rates
    schedules = schedules_of(
        steps_per_epoch,
        epochs=epochs,
        warmup_epochs=warmup_epochs,
        ipe_scale=ipe_scale,
        start_lr=start,
        lr=peak,
        final_lr=final,
        weight_decay=decays[0],
        final_weight_decay=decays[1],
    )
    horizon = int(ipe_scale * epochs * steps_per_epoch)
    warmup = int(warmup_epochs * steps_per_epoch)
    end = max(horizon + 1, warmup)
    # A fixed number of steps, so that nothing is compiled anew: around each corner, and between.
    corners = [c + d for c in (0, warmup, horizon, end, 2 * end) for d in range(-3, 4)]
    between = np.linspace(0, 3 * end, 93).astype(int).tolist()
    steps = np.unique(np.clip(corners + between, 0, None))
    padded = np.pad(steps, (0, 128 - len(steps)), mode="edge").astype(np.int32)
    lr, decay = (np.asarray(schedule(jnp.asarray(padded))) for schedule in schedules[:2])

    for values, ends in (
        (lr, (final, peak)),
        (decay, decays),
    ):
        assert np.isfinite(values).all()
        assert values.min() >= min(ends) * (1 - 1e-5) - 1e-6 * max(ends)
        assert values.max() <= max(ends) * (1 + 1e-5)

    def rises(values, largest):  # but for rounding
        return (np.diff(values) >= -1e-6 * largest).all()

    assert rises(lr[padded < warmup], peak)
    assert rises(-lr[padded >= max(warmup - 1, 0)], peak)
    assert rises(np.sign(decays[1] - decays[0]) * decay, max(decays))
    for values, last in ((lr, final), (decay, decays[1])):
        np.testing.assert_allclose(values[padded >= end], last, rtol=1e-5, atol=1e-6 * peak)


def test_the_average_s_momentum_rises_along_a_half_cosine():
    """BYOL's: 1 - (1 - m) (cos(pi k / K) + 1) / 2 (Grill et al., 2020, section 3.2)."""
    ema = EmaConfig(start_momentum=0.99, schedule="cosine")
    for step in (0, 7, 50, 100, 130):
        expected = 1 - 0.01 * (math.cos(math.pi * min(step, 100) / 100) + 1) / 2
        assert float(momentum_at(ema, step, 100.0)) == pytest.approx(expected, abs=1e-6)


def test_the_average_s_momentum_stays_after_its_rise():
    """data2vec's: from .999 to .9998 over a part of the run."""
    ema = EmaConfig(start_momentum=0.999, final_momentum=0.9998, rise_share=0.25)
    expected = {0: 0.999, 10: 0.99932, 25: 0.9998, 80: 0.9998}
    for step, momentum in expected.items():
        assert float(momentum_at(ema, step, 100.0)) == pytest.approx(momentum, abs=1e-6)
