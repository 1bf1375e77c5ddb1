"""Layer-wise learning rates: what lies deeper in a pretrained encoder changes less."""

from typing import Any

import jax
import numpy as np
import optax

from jepa_jax.errors import UserError
from jepa_jax.objectives.objective import Objective


def layer_factors(params: Any, decay: float, objective: Objective) -> Any:
    """What each parameter's learning rate is multiplied by, as float32 that broadcasts to it.

    decay^(L + 1 - l) for block l = 1 .. L of an encoder, decay^(L + 1) for what comes before it
    (patch embedding, positions, class token), and 1 for its last LayerNorm and all other parts, as
    the head (Bao et al., 2022, "BEiT", appendix; He et al., 2022, appendix A.1).

    Args:
      params: the parameters or their shapes; the blocks' stacked along axis 0, as they are whether
        they run in a loop or unrolled.

    Raises:
      UserError: the objective trains no encoder.
    """
    paths = [path[1:] for path in objective.encoders.values() if path[0] == "params"]
    if not paths:
        raise UserError(
            f"config.optimizer.layer_decay = {decay}: must be 1.0 for an objective that trains no "
            "encoder"
        )

    def factor(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        names = tuple(key.key for key in path)
        for encoder in paths:
            if names[: len(encoder)] != encoder:
                continue
            depth = _depth(params, encoder)
            below = names[len(encoder) :]
            if below[:2] == ("transformer", "blocks"):
                powers = depth - np.arange(depth)
                return np.float32(decay**powers).reshape(-1, *[1] * (leaf.ndim - 1))
            if below[0] != "transformer":
                return np.full([1] * leaf.ndim, decay ** (depth + 1), np.float32)
        return np.ones([1] * leaf.ndim, np.float32)

    return jax.tree_util.tree_map_with_path(factor, params)


def _depth(params: Any, encoder: tuple[str, ...]) -> int:
    for name in (*encoder, "transformer", "blocks"):
        params = params[name]
    return jax.tree.leaves(params)[0].shape[0]


def scaled_by(
    optimizer: optax.GradientTransformation, factors: Any
) -> optax.GradientTransformation:
    """The same optimizer with its final updates, weight decay included, times the factors.

    Its state is as it was, so that a run may go on with other factors.
    """

    def update(
        updates: Any, state: optax.OptState, params: Any = None
    ) -> tuple[Any, optax.OptState]:
        updates, state = optimizer.update(updates, state, params)
        return jax.tree.map(lambda update, factor: update * factor, updates, factors), state

    return optax.GradientTransformation(optimizer.init, update)
