"""The moving average of the parameters, as an optax transformation.

It can end any optimizer's chain. In a training run it is an objective's `state`: sharded, donated,
checkpointed and restored like the optimizer's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array


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
