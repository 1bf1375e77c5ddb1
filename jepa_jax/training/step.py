"""The one compiled function that advances the training state."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from jepa_jax.objectives.objective import Batch, Clock, Objective
from jepa_jax.training.optimizer import hold
from jepa_jax.training.schedules import Schedules
from jepa_jax.training.sharding import batch_sharding, replicated, traced_on, tree_shardings
from jepa_jax.training.state import TrainState

TrainStep = Any  # jitted: (state, batch) -> (next state, metrics)


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
) -> TrainStep:
    """One optimizer step, jitted over the mesh, with its state donated.

    Args:
      state: the state to be trained, or its shapes.
      seed: of the loss's random key; the key of a step is a function of (seed, step).
      accumulation_steps: micro-batches whose gradients are averaged before the update.
      donate: the new state replaces the old one in memory, which can't be used again.

    Returns:
      (state, batch) -> (next state, metrics). The metrics are float32 scalars of this step: loss,
      lr, weight_decay, the global norm of the gradient, skipped, and what the objective adds. A
      step whose loss or gradient is not finite is skipped (1.0, else 0.0): see `keep`.
    """
    objective_state = optax.with_extra_args_support(objective.state(schedules.horizon))
    first_steps = objective.trains(state.params) if objective.trains else None

    def loss_and_gradient(state: TrainState, batch: Batch) -> tuple[tuple[Array, Any], Any]:
        clock = Clock(state.step, schedules.horizon)
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        value_and_grad = jax.value_and_grad(objective.loss, has_aux=True)
        if accumulation_steps == 1:
            return value_and_grad(state.params, state.objective_state, batch, key, clock)

        def one(numbered: tuple[Array, Batch]) -> tuple[tuple[Array, Any], Any]:
            number, micro_batch = numbered
            micro_key = jax.random.fold_in(key, number)
            return value_and_grad(
                state.params, state.objective_state, micro_batch, micro_key, clock
            )

        def accumulate(total: Any, numbered: tuple[Array, Batch]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, one(numbered)), None

        def split(x: Array) -> Array:  # [B, ...] -> [A, B / A, ...], each device its own share
            x = x.reshape(x.shape[0] // accumulation_steps, accumulation_steps, *x.shape[1:])
            return jnp.swapaxes(x, 0, 1)

        numbered = (jnp.arange(accumulation_steps), jax.tree.map(split, batch))
        like = jax.eval_shape(one, jax.tree.map(lambda x: x[0], numbered))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        total, _ = jax.lax.scan(accumulate, zeros, numbered)
        return jax.tree.map(lambda x: x / accumulation_steps, total)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        (loss, out), gradient = loss_and_gradient(state, batch)
        if first_steps is not None:
            gradient = hold(gradient, first_steps, state.step)
        gradient_norm = optax.tree.norm(gradient)  # not finite if any number of it is not
        finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, state.params)
        if first_steps is not None:  # weight decay too
            updates = hold(updates, first_steps, state.step)
        _, new_objective_state = objective_state.update(
            updates, state.objective_state, state.params, out=out
        )
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            "lr": schedules.learning_rate(state.step),
            "weight_decay": schedules.weight_decay(state.step),
            "gradient_norm": gradient_norm,
            "skipped": 1.0 - finite,
            **out.get("metrics", {}),
        }
        new = TrainState(state.step + 1, params, optimizer_state, new_objective_state)
        return keep(state, new, unless=finite), metrics

    shardings = tree_shardings(state, mesh)
    return jax.jit(
        traced_on(mesh, train_step),
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0 if donate else (),
    )


def keep(old: TrainState, new: TrainState, *, unless: Array) -> TrainState:
    """The new state, or the old one with the counters of the new one.

    So neither the parameters nor the moments nor a moving average ever see a number that is not
    finite, and all devices decide alike; but the step and the schedules go on, with other examples.
    """

    def one(before: Array, after: Array) -> Array:
        if jnp.issubdtype(after.dtype, jnp.integer):
            return after
        return jnp.where(unless, after, before)

    return jax.tree.map(one, old, new)
