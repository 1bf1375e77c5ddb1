"""From a configuration to a step: mesh, schedules, optimizer, state and step, put together once."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from jepa_jax.config import Config
from jepa_jax.errors import UserError
from jepa_jax.objectives.objective import Objective
from jepa_jax.training.layer_decay import layer_factors, scaled_by
from jepa_jax.training.optimizer import make_optimizer
from jepa_jax.training.schedules import Schedules, make_schedules
from jepa_jax.training.sharding import check_divisible, make_mesh, tree_shardings
from jepa_jax.training.state import TrainState, sharded_shapes, state_creator
from jepa_jax.training.step import TrainStep, make_train_step


class Setup(NamedTuple):
    """All that training is made of; no array exists yet.

    Attributes:
      create: () -> the state before step 0, made in place: no device ever holds more than its
        share of an array.
      like: the state's shapes, types and shardings.
      step: (state, batch) -> (next state, metrics); see `make_train_step`.
    """

    mesh: Mesh
    schedules: Schedules
    optimizer: optax.GradientTransformation
    create: Callable[[], TrainState]
    like: TrainState
    step: TrainStep


def set_up(
    config: Config,
    objective: Objective,
    *,
    steps_per_epoch: int,
    mesh: Mesh | None = None,
    devices: Sequence[Any] | None = None,
    donate: bool = True,
) -> Setup:
    """Puts a run together.

    Args:
      mesh: None: as configured, over `devices`, or over all that there are.
      donate: see `make_train_step`.

    Raises:
      UserError: the configuration does not fit the devices, or asks for what the objective can't.
    """
    accumulation_steps = config.optimizer.accumulation_steps
    if accumulation_steps > 1 and not objective.mean_over_examples:
        raise UserError(
            f"config.optimizer.accumulation_steps = {accumulation_steps}: must be 1 for "
            f"{config.objective.name}, whose loss is no mean over examples: it compares the "
            "examples of a batch, so that the micro-batches' gradients do not add up to the batch's"
        )
    mesh = make_mesh(config.mesh, devices) if mesh is None else mesh
    schedules = make_schedules(config, steps_per_epoch)
    params = jax.eval_shape(objective.init, jax.random.key(0))
    first_steps = objective.trains(params) if objective.trains else None
    optimizer = make_optimizer(config.optimizer, schedules, first_steps)
    if config.optimizer.layer_decay != 1.0:
        factors = layer_factors(params, config.optimizer.layer_decay, objective)
        optimizer = scaled_by(optimizer, factors)
    create = state_creator(objective, optimizer, horizon=schedules.horizon, seed=config.seed)
    check_divisible(
        params, mesh, batch_size=config.batch_size, accumulation_steps=accumulation_steps
    )
    like = sharded_shapes(create, mesh)
    step = make_train_step(
        objective,
        optimizer,
        schedules,
        like,
        seed=config.seed,
        accumulation_steps=accumulation_steps,
        mesh=mesh,
        donate=donate,
    )
    jitted = jax.jit(create, out_shardings=tree_shardings(like, mesh))
    return Setup(mesh, schedules, optimizer, jitted, like, step)
