"""DINO against float64 NumPy: loss, centre, temperatures, and a last layer frozen at first."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_model import as_float64, numpy_head, unit
from scipy.special import log_softmax, softmax
from views import SMALL_CROPS, B, Evaluated, K, random_views, small_config

from jepa_jax.objectives.dino import DinoState, follow_and_center, teacher_temperature
from jepa_jax.objectives.ema import EmaState
from jepa_jax.objectives.objective import NEVER, Clock
from jepa_jax.objectives.registry import make_objective

CENTER = np.array([0.3, -0.2, 0.1, 0.0], np.float32)
EMA = {"start_momentum": 0.9, "schedule": "cosine", "kept_share": None}


def config_of(**objective):
    return small_config(
        "dino",
        num_prototypes=K,
        batch_norm=False,  # as published
        start_teacher_temperature=0.04,
        teacher_temperature=0.07,
        teacher_warmup_share=0.5,
        ema=EMA,
        **SMALL_CROPS,
        **objective,
    )


def outputs(params, features):
    z = unit(numpy_head(params["projector"], features, "gelu"))
    return z @ unit(params["prototypes"]["kernel"]).T


@pytest.fixture(scope="module")
def run():
    batch = random_views(**{"global": (2, 28, 28), "local": (2, 14, 14)})
    return Evaluated(
        config_of(), batch, lambda other: DinoState(EmaState(jnp.int32(0), other), CENTER)
    )


@pytest.fixture(scope="module")
def taught(run):
    """The teacher's outputs [2, B, K] for the large crops."""
    crops = (run.batch["global"][:, crop] for crop in range(2))
    other = as_float64(run.other)
    return np.stack([outputs(other, run.features(run.other["encoder"], c)) for c in crops])


def test_all_crops_match_the_centred_and_sharpened_teacher_of_the_other_large_crops(run, taught):
    """Step 3 of 10, of which five warm up: the teacher's temperature is at three fifths."""
    targets = softmax((taught - CENTER) / (0.04 + 0.6 * 0.03), axis=-1)
    features = [
        run.features(run.params["encoder"], run.batch[name][:, crop])
        for name in ("global", "local")
        for crop in range(2)
    ]

    def by_hand(params):
        total, pairs = 0.0, 0
        log_p = [log_softmax(outputs(params, view) / 0.1, axis=-1) for view in features]
        for g in range(2):
            for v in range(4):
                if v != g:
                    total -= np.mean(np.sum(targets[g] * log_p[v], axis=1))
                    pairs += 1
        return total / pairs

    run.check(by_hand, path=("prototypes", "kernel"))
    run.check(by_hand, path=("projector", "fc1", "kernel"))


def test_the_center_is_an_average_of_the_teacher_s_outputs(run, taught):
    mean = taught.mean(axis=(0, 1))
    np.testing.assert_allclose(run.out["taught"], mean, atol=1e-5)
    transform = follow_and_center(run.config.objective, 10.0)
    still = jax.tree.map(jnp.zeros_like, run.params)
    _, state = transform.update(still, run.state, run.params, out=run.out)
    np.testing.assert_allclose(state.center, 0.9 * CENTER + 0.1 * mean, atol=1e-5)
    leaf = state.average.target["projector"]["fc1"]["kernel"]  # step 0: momentum .9
    expected = 0.9 * run.other["projector"]["fc1"]["kernel"]
    expected += 0.1 * run.params["projector"]["fc1"]["kernel"]
    np.testing.assert_allclose(leaf, expected, rtol=1e-5)


def test_the_teacher_s_temperature_rises_and_stays():
    settings = config_of().objective
    ours = [float(teacher_temperature(settings, Clock(step, 10.0))) for step in (0, 1, 5, 9)]
    np.testing.assert_allclose(ours, [0.04, 0.046, 0.07, 0.07], rtol=1e-6)


def test_the_prototypes_alone_wait(run):
    objective = make_objective(config_of(freeze_prototypes_steps=7))
    first = objective.trains(run.params)
    assert first["prototypes"] == {"kernel": 7}
    assert set(jax.tree.leaves([first["encoder"], first["projector"]])) == {0}
    assert NEVER not in jax.tree.leaves(first)


def test_an_output_that_is_the_same_for_all_is_centred_away():
    """What centring is for: one output that is large for every image is no assignment to it."""
    settings = config_of().objective
    transform = follow_and_center(settings, 10.0)
    params = {"encoder": {}, "projector": {}, "prototypes": {"kernel": jnp.ones((K, 2))}}
    state = transform.init(params)
    always = np.array([0.9, 0.1, 0.1, 0.1], np.float32)
    for _ in range(60):
        _, state = transform.update(params, state, params, out={"taught": jnp.asarray(always)})
    p = softmax((always - np.asarray(state.center)) / 0.04)
    np.testing.assert_allclose(p, np.full(K, 1 / K), atol=0.02)
    assert B > 1
