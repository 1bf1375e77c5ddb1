"""The training state, created on its devices."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from jepa_jax.objectives.objective import Objective
from jepa_jax.training.sharding import tree_shardings


class TrainState(NamedTuple):
    """All that a run carries from step to step. All floating-point numbers in it are float32.

    But for Adam's first moment, where `optimizer.first_moment_dtype` says so.
    """

    step: Array  # int32 scalar: optimizer steps taken
    params: Any
    optimizer_state: Any
    objective_state: Any  # what no gradient trains: I-JEPA's moving average, a queue, nothing


def state_creator(
    objective: Objective, optimizer: optax.GradientTransformation, *, horizon: float, seed: int
) -> Callable[[], TrainState]:
    """() -> the state before step 0, to be jitted or traced."""

    def create() -> TrainState:
        params = objective.init(jax.random.key(seed))
        return TrainState(
            step=jnp.zeros([], jnp.int32),
            params=params,
            optimizer_state=optimizer.init(params),
            objective_state=objective.state(horizon).init(params),
        )

    return create


def sharded_shapes(create: Callable[[], TrainState], mesh: Mesh) -> TrainState:
    """Shapes, types and shardings of the state, without any array: what to restore into."""
    state = jax.eval_shape(create)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        tree_shardings(state, mesh),
    )
