import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jepa_jax.objectives.ema import EmaState, follow_parameters

STEPS = 50


def momentum_at(step):
    return 0.996 + (1.0 - 0.996) * step / 60


@pytest.fixture(scope="module")
def walk():
    """Parameters before step 0, and the update of each of 50 steps, in float64."""
    rng = np.random.default_rng(0)
    return rng.normal(size=7), 0.1 * rng.normal(size=(STEPS, 7))


def follow(params, updates):
    """The state of the average after the last step, and what came through of the updates."""
    average = follow_parameters(momentum_at, lambda tree: tree["encoder"])
    update = jax.jit(average.update)
    state, passed = average.init(params), []
    for step in range(STEPS):
        through, state = update(jax.tree.map(lambda u: u[step], updates), state, params)  # noqa: B023
        params = optax.apply_updates(params, through)
        passed.append(through)
    return state, jax.tree.map(lambda *leaves: np.stack(leaves), *passed)


@pytest.fixture(scope="module")
def followed(walk):
    start, updates = (jnp.asarray(x, jnp.float32) for x in walk)
    # The second entry is not selected, and moves elsewhere.
    return follow(
        {"encoder": {"kernel": start}, "predictor": -start},
        {"encoder": {"kernel": updates}, "predictor": 3 * updates},
    )


def test_the_average_follows_the_parameters_after_each_update(walk, followed):
    params, updates = walk
    target = params
    for step in range(STEPS):
        params = params + updates[step]
        m = 0.996 + 0.004 * step / 60
        target = m * target + (1 - m) * params
    state, _ = followed
    assert state.target.keys() == {"kernel"}
    np.testing.assert_allclose(state.target["kernel"], target, rtol=1e-5, atol=1e-6)
    assert np.abs(target - walk[0]).max() > 1e-3  # it has moved
    assert state.step == STEPS


def test_updates_pass_through_unchanged(walk, followed):
    _, passed = followed
    updates = np.asarray(walk[1], np.float32)
    np.testing.assert_array_equal(passed["encoder"]["kernel"], updates)
    np.testing.assert_array_equal(passed["predictor"], 3 * updates)


def test_case_48_the_average_is_float32_because_one_in_bfloat16_would_not_move():
    """A step of 0.4 % of a small difference is less than half a bfloat16's last bit."""
    m, followed_value = 0.996, 1.25
    in_bfloat16 = jnp.bfloat16(1.0)
    for _ in range(STEPS):
        in_bfloat16 = (m * in_bfloat16 + (1 - m) * jnp.bfloat16(followed_value)).astype(
            jnp.bfloat16
        )
    assert in_bfloat16 == 1.0

    average = follow_parameters(lambda step: m, lambda tree: tree)
    params = jnp.ones(3, jnp.bfloat16)
    state = average.init(params)
    assert state.target.dtype == jnp.float32
    update = jax.jit(average.update)
    params = jnp.full(3, followed_value, jnp.bfloat16)
    for _ in range(STEPS):
        _, state = update(jnp.zeros_like(params), state, params)
    assert state.target.dtype == jnp.float32
    np.testing.assert_allclose(state.target, 1.25 - 0.25 * 0.996**STEPS, rtol=1e-5)


def test_the_average_starts_as_a_copy_that_donation_cannot_spoil():
    average = follow_parameters(momentum_at, lambda tree: tree)
    params = jnp.arange(3.0)
    target = average.init(params).target
    assert target.unsafe_buffer_pointer() != params.unsafe_buffer_pointer()
    np.testing.assert_array_equal(target, params)


def test_an_update_without_parameters_is_refused():
    average = follow_parameters(momentum_at, lambda tree: tree)
    with pytest.raises(ValueError, match="params"):
        average.update(jnp.zeros(3), average.init(jnp.zeros(3)))


def test_the_average_ends_any_chain_of_optax():
    chain = optax.chain(
        optax.sgd(0.5), follow_parameters(lambda step: 0.75, lambda tree: tree["encoder"])
    )
    params = {"encoder": jnp.arange(3.0), "predictor": jnp.ones(2)}
    state = chain.init(params)
    updates, state = chain.update(jax.tree.map(jnp.ones_like, params), state, params)
    np.testing.assert_array_equal(updates["encoder"], [-0.5] * 3)
    average = state[-1]
    assert isinstance(average, EmaState)
    np.testing.assert_allclose(average.target, np.arange(3.0) - 0.25 * 0.5)
