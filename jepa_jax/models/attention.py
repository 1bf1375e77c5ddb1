"""Softmax attention, and which of its implementations runs."""

import functools
import logging
from typing import Any, Literal

import jax
import jax.numpy as jnp

log = logging.getLogger(__name__)

Implementation = Literal["xla", "cudnn"]  # of `jax.nn.dot_product_attention`


def choose_attention(asked: str, dtype: Any, head_dim: int) -> Implementation:
    """The implementation of attention that runs.

    cuDNN's fused attention never writes the scores to memory. It exists for half precision on
    NVIDIA GPUs, for head dimensions that are multiples of 8 up to 128. Whether this machine's
    cuDNN has it is found out by compiling a small example. On TPUs XLA's own is as good at a few
    hundred tokens, and on CPUs there is no other.

    Args:
      asked: "xla", or "auto" for cuDNN's wherever it works.
    """
    possible = (
        asked == "auto"
        and jax.default_backend() == "gpu"
        and jnp.dtype(dtype) == jnp.bfloat16
        and head_dim % 8 == 0
        and head_dim <= 128
    )
    return "cudnn" if possible and cudnn_works(head_dim) else "xla"


@functools.cache
def cudnn_works(head_dim: int) -> bool:
    """Whether forward and backward pass compile here."""

    def attend(x: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(x, x, x, implementation="cudnn").sum()

    example = jax.ShapeDtypeStruct((1, 16, 1, head_dim), jnp.bfloat16)
    try:
        jax.jit(jax.grad(attend)).lower(example).compile()
    except Exception as error:  # of many kinds, from JAX, XLA or cuDNN; all mean the same
        log.warning("attention: no cuDNN for head dimension %d, so XLA's: %s", head_dim, error)
        return False
    return True
