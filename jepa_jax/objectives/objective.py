"""What the training step, the checkpoints and the probes know of an objective."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float

Params = Any  # a tree of float32 arrays
Batch = dict[str, Array]


class Objective(NamedTuple):
    """A training objective as pure functions.

    Attributes:
      init: random key -> parameters.
      loss: (parameters, target parameters, batch, random key) -> scalar float32. The gradient is
        taken with respect to the first argument alone.
      target_of: the part of the parameters that the moving average follows. The average is the
        `target parameters` of `loss`, and what is probed.
      encode: (target parameters, images [B, H, W, 3]) -> tokens float32 [B, N, D].
    """

    init: Callable[[Array], Params]
    loss: Callable[[Params, Params, Batch, Array], Float[Array, ""]]
    target_of: Callable[[Params], Params]
    encode: Callable[[Params, Array], Float[Array, "B N D"]]
