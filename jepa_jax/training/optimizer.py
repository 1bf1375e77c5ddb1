"""AdamW with scheduled learning rate and weight decay; and parts of the parameters held back."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jepa_jax.config import OptimizerConfig
from jepa_jax.objectives.objective import NEVER
from jepa_jax.training.schedules import Schedules


def make_optimizer(
    config: OptimizerConfig, schedules: Schedules, first_steps: Any = None
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter, 2019).

    The decay is decoupled from the gradient and multiplied by the learning rate, as in PyTorch.

    Args:
      first_steps: a tree like the parameters, see `Objective.trains`; None: all are trained. What
        is never trained has no moments.
    """
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    adamw = optax.chain(
        *clip,
        keep_first_moment_in(
            config.first_moment_dtype,
            optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        ),
        optax.add_decayed_weights(schedules.weight_decay, mask=decay_mask),
        optax.scale_by_learning_rate(schedules.learning_rate),
    )
    if first_steps is None or NEVER not in jax.tree.leaves(first_steps):
        return adamw
    labels = jax.tree.map(lambda first: "frozen" if first == NEVER else "trained", first_steps)
    return optax.multi_transform({"trained": adamw, "frozen": optax.set_to_zero()}, labels)


def keep_first_moment_in(
    dtype: str, adam: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Adam with a first moment that is rounded to `dtype` between the steps.

    Optax's own `mu_dtype` multiplies in that type too, in which 0.9 is 0.898 and 0.99 is 0.988.
    """

    def cast(state: optax.ScaleByAdamState, dtype: Any) -> optax.ScaleByAdamState:
        return state._replace(mu=optax.tree.cast(state.mu, dtype))

    def init(params: Any) -> optax.ScaleByAdamState:
        return cast(adam.init(params), dtype)

    def update(gradient: Any, state: optax.ScaleByAdamState, params: Any = None) -> Any:
        updates, state = adam.update(gradient, cast(state, jnp.float32), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(init, update)


def decay_mask(params: Any) -> Any:
    """True where weight decay applies: kernels and learned tokens, as published; no positions.

    By name, not by number of dimensions: the blocks' parameters are stacked, so a bias has two.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key not in ("bias", "scale", "pos_embed"), params
    )


def hold(tree: Any, first_steps: Any, step: Array) -> Any:
    """Zeros where a part is not trained yet at this step."""
    return jax.tree.map(lambda x, first: jnp.where(step >= first, x, 0), tree, first_steps)
