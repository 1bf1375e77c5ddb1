"""Learning rate and weight decay as pure functions of the step.

The forms and their off-by-ones are those of the reference, so that its runs can be followed: step 0
trains with the values at 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from jepa_jax.config import Config

Schedule = Callable[[Array | int], Array]


class Schedules(NamedTuple):
    """Each schedule maps the number of a step, from 0 on, to the value that the step uses."""

    learning_rate: Schedule
    weight_decay: Schedule
    horizon: float  # where they end, in steps; an objective's own ramps end there too


def make_schedules(config: Config, steps_per_epoch: int) -> Schedules:
    """The schedules of a run, in steps.

    Args:
      config: epochs, warm-up epochs, `ipe_scale`, end values.
      steps_per_epoch: from the size of the data set and of the batch.
    """
    optimizer = config.optimizer
    horizon = optimizer.ipe_scale * config.epochs * steps_per_epoch
    scale = 1.0
    if optimizer.reference_batch_size:
        scale = config.batch_size / optimizer.reference_batch_size
    return Schedules(
        learning_rate=warmup_cosine(
            start=optimizer.start_lr * scale,
            peak=optimizer.lr * scale,
            final=optimizer.final_lr * scale,
            warmup_steps=int(optimizer.warmup_epochs * steps_per_epoch),
            horizon=int(horizon),
        ),
        weight_decay=cosine(
            optimizer.weight_decay, optimizer.final_weight_decay, horizon=int(horizon)
        ),
        horizon=float(horizon),
    )


def warmup_cosine(
    *, start: float, peak: float, final: float, warmup_steps: int, horizon: int
) -> Schedule:
    """Linear from `start` to `peak`, then a half cosine to `final` at `horizon`."""
    decay = cosine(peak, final, horizon=max(horizon - warmup_steps, 1))

    def schedule(step: Array | int) -> Array:
        warm = start + (peak - start) * (step + 1) / max(warmup_steps, 1)
        return jnp.where(step + 1 < warmup_steps, warm, decay(step - warmup_steps))

    return schedule


def cosine(start: float, final: float, *, horizon: int) -> Schedule:
    """A half cosine from `start` to `final`, which stays there beyond `horizon`."""

    def schedule(step: Array | int) -> Array:
        progress = jnp.minimum((step + 1) / max(horizon, 1), 1.0)
        return final + (start - final) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))

    return schedule
