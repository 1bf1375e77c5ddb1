"""The moving average of the parameters, as an optax transformation.

It can end any optimizer's chain. In a training run it is an objective's `state`: sharded, donated,
checkpointed and restored like the optimizer's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from jepa_jax.config import EmaConfig
from jepa_jax.objectives.objective import Outlook

MOST_KEPT = 0.05  # of its random start at the end of a run; beyond it, the run is warned of


class EmaState(NamedTuple):
    step: Any  # int32 scalar
    target: Any  # the average, float32


def follow_parameters(
    momentum: Callable[[Array], Array], select: Callable[[Any], Any]
) -> optax.GradientTransformation:
    """Keeps target <- m * target + (1 - m) * parameters; passes the updates through unchanged.

    Goes last in the chain: the parameters that it follows are those *after* the update (Assran et
    al., 2023, section 3).

    Args:
      momentum: step -> m.
      select: picks the part of the parameters to follow; the average starts as a copy of it.
    """

    def init(params: Any) -> EmaState:
        return EmaState(
            step=jnp.zeros([], jnp.int32),
            target=jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), select(params)),
        )

    def update(updates: Any, state: EmaState, params: Any = None) -> tuple[Any, EmaState]:
        if params is None:
            raise ValueError("follow_parameters needs the parameters: update(..., params=...)")
        new = select(optax.apply_updates(params, updates))
        chex.assert_trees_all_equal_shapes(state.target, new)
        m = momentum(state.step)
        target = jax.tree.map(
            lambda t, p: m * t + (1.0 - m) * p.astype(jnp.float32), state.target, new
        )
        return updates, EmaState(step=state.step + 1, target=target)

    return optax.GradientTransformation(init, update)


def averaging(
    ema: EmaConfig, select: Callable[[Any], Any]
) -> Callable[[float], optax.GradientTransformation]:
    """`Objective.state` of a moving average alone: horizon -> its transformation."""

    def state(horizon: float) -> optax.GradientTransformation:
        return follow_parameters(lambda step: momentum_at(ema, step, horizon), select)

    return state


def momentum_at(ema: EmaConfig, step: Array | int, horizon: float) -> Array:
    """Of the moving average: from step 0 to `rise_share` of the horizon, and constant after it."""
    start = start_momentum(ema, horizon)
    progress = jnp.minimum(step / (ema.rise_share * horizon), 1.0)
    return start + (ema.final_momentum - start) * _risen(ema, progress, jnp)


def start_momentum(ema: EmaConfig, horizon: float) -> float:
    """Of step 0: as configured, or such that `kept_share` of the start is left at the horizon."""
    if ema.kept_share is None:
        return ema.start_momentum
    low, high = 0.0, 1.0
    for _ in range(50):  # bisection: the share grows with the momentum
        middle = 0.5 * (low + high)
        if _kept(ema, middle, horizon, int(horizon)) < ema.kept_share:
            low = middle
        else:
            high = middle
    return high


def kept_share(ema: EmaConfig, horizon: float, steps: int) -> float:
    """The share of its random start that the moving average still is after some steps."""
    return _kept(ema, start_momentum(ema, horizon), horizon, steps)


def average_outlook(ema: EmaConfig, steps: int, horizon: float, from_scratch: bool) -> Outlook:
    """What the moving average of a run will be like. See `Objective.outlook`."""
    start, kept = start_momentum(ema, horizon), kept_share(ema, horizon, steps)
    fact = (
        f"momentum {start:.4g} to {ema.final_momentum:.4g}: at the end the target encoder is still "
        f"{kept:.2g} of its start"
    )
    if not from_scratch or kept <= MOST_KEPT:
        return Outlook((fact,), ())
    warning = (
        f"config.objective.ema.start_momentum = {start:.4g}: {steps} steps leave {kept:.0%} of "
        f"the target encoder at its random start, and it should be under {MOST_KEPT:.0%}; set "
        "objective.ema.kept_share=0.001 in its place, or train longer"
    )
    return Outlook((fact,), (warning,))


def _risen(ema: EmaConfig, progress: Any, xp: Any) -> Any:
    """How far the momentum has gone from its start to its end; `xp`: NumPy or JAX."""
    if ema.schedule == "linear":
        return progress
    return 0.5 * (1.0 - xp.cos(xp.pi * progress))


def _kept(ema: EmaConfig, start: float, horizon: float, steps: int) -> float:
    progress = np.minimum(np.arange(steps) / (ema.rise_share * horizon), 1.0)
    momenta = start + (ema.final_momentum - start) * _risen(ema, progress, np)
    with np.errstate(divide="ignore"):  # a momentum of 0 keeps nothing
        return float(np.exp(np.sum(np.log(momenta))))
