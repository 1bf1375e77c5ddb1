"""The training state, and the one compiled function that advances it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from jepa_jax.objectives.objective import Batch, Objective
from jepa_jax.training.ema import get_target
from jepa_jax.training.schedules import Schedules
from jepa_jax.training.sharding import batch_sharding, replicated, traced_on, tree_shardings


class TrainState(NamedTuple):
    """All that a run carries from step to step. All floating-point numbers in it are float32."""

    step: Array  # int32 scalar: optimizer steps taken
    params: Any
    optimizer_state: Any  # the moving average (the target encoder) is in it: `ema.get_target`


def create_state(
    objective: Objective, optimizer: optax.GradientTransformation, *, seed: int, mesh: Mesh
) -> TrainState:
    """The state before step 0, created in place on its devices."""
    return make_create(objective, optimizer, seed=seed, mesh=mesh)()


def make_create(
    objective: Objective, optimizer: optax.GradientTransformation, *, seed: int, mesh: Mesh
) -> Callable[[], TrainState]:
    """Jitted () -> state before step 0. No device ever holds more than its share of an array."""
    create = _creator(objective, optimizer, seed)
    return jax.jit(create, out_shardings=tree_shardings(jax.eval_shape(create), mesh))


def abstract_state(
    objective: Objective, optimizer: optax.GradientTransformation, *, mesh: Mesh
) -> TrainState:
    """Shapes, types and shardings of the state, without any array: what to restore into."""
    state = jax.eval_shape(_creator(objective, optimizer, seed=0))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        tree_shardings(state, mesh),
    )


def _creator(
    objective: Objective, optimizer: optax.GradientTransformation, seed: int
) -> Callable[[], TrainState]:
    def create() -> TrainState:
        params = objective.init(jax.random.key(seed))
        return TrainState(jnp.zeros([], jnp.int32), params, optimizer.init(params))

    return create


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedules: Schedules,
    state: TrainState,
    *,
    seed: int,
    accumulation_steps: int,
    mesh: Mesh,
    donate: bool = True,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """One optimizer step, jitted over the mesh, with its state donated.

    Args:
      state: the state to be trained, or its shapes.
      seed: of stochastic depth; the key of a step is a function of (seed, step).
      accumulation_steps: micro-batches whose gradients are averaged before the update.
      donate: the new state takes the place of the old one in memory, which is gone then.

    Returns:
      (state, batch) -> (next state, metrics). The metrics are float32 scalars of this step: loss,
      lr, weight_decay, momentum, and the global norms of gradient and parameters.
    """

    def loss_and_gradient(state: TrainState, batch: Batch) -> tuple[Array, Any]:
        target = get_target(state.optimizer_state)
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        value_and_grad = jax.value_and_grad(objective.loss)
        if accumulation_steps == 1:
            return value_and_grad(state.params, target, batch, key)

        def accumulate(total: Any, numbered: tuple[Array, Batch]) -> tuple[Any, None]:
            number, micro_batch = numbered
            part = value_and_grad(
                state.params, target, micro_batch, jax.random.fold_in(key, number)
            )
            return jax.tree.map(jnp.add, total, part), None

        def split(x: Array) -> Array:  # [B, ...] -> [A, B / A, ...], each device its own share
            x = x.reshape(x.shape[0] // accumulation_steps, accumulation_steps, *x.shape[1:])
            return jnp.swapaxes(x, 0, 1)

        zeros = (jnp.zeros([]), jax.tree.map(jnp.zeros_like, state.params))
        numbered = (jnp.arange(accumulation_steps), jax.tree.map(split, batch))
        total, _ = jax.lax.scan(accumulate, zeros, numbered)
        return jax.tree.map(lambda x: x / accumulation_steps, total)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        loss, gradient = loss_and_gradient(state, batch)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            "lr": schedules.learning_rate(state.step),
            "weight_decay": schedules.weight_decay(state.step),
            "momentum": schedules.momentum(state.step),
            "gradient_norm": optax.tree.norm(gradient),
            "parameter_norm": optax.tree.norm(params),
        }
        return TrainState(state.step + 1, params, optimizer_state), metrics

    shardings = tree_shardings(state, mesh)
    return jax.jit(
        traced_on(mesh, train_step),
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0 if donate else (),
    )
