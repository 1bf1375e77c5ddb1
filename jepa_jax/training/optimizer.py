"""AdamW with scheduled learning rate and weight decay, and the moving average behind it."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from jepa_jax.config import OptimizerConfig
from jepa_jax.training.ema import follow_parameters
from jepa_jax.training.schedules import Schedules


def make_optimizer(
    config: OptimizerConfig, schedules: Schedules, target_of: Callable[[Any], Any]
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter, 2019), then the average of the parameters that it leaves.

    The decay is decoupled from the gradient and multiplied by the learning rate, as in PyTorch.
    """
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    return optax.chain(
        *clip,
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(schedules.weight_decay, mask=decay_mask),
        optax.scale_by_learning_rate(schedules.learning_rate),
        follow_parameters(schedules.momentum, target_of),
    )


def decay_mask(params: Any) -> Any:
    """True where weight decay applies: kernels and the mask vector, as published; no positions.

    By name, not by number of dimensions: the blocks' parameters are stacked, so a bias has two.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key not in ("bias", "scale", "pos_embed"), params
    )
