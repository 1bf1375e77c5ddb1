"""Softmax attention, and which of its implementations runs."""

import functools
import logging
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array

from jepa_jax.models import pallas_attention

log = logging.getLogger(__name__)

# "xla", "cudnn": of `jax.nn.dot_product_attention`; "pallas": models/pallas_attention.py.
Implementation = Literal["xla", "cudnn", "pallas"]


def wants_fused(asked: str, dtype: Any) -> bool:
    """Whether a fused implementation runs where there is one that works."""
    return asked == "auto" and jnp.dtype(dtype) == jnp.bfloat16


def choose_attention(asked: str, dtype: Any, head_dim: int) -> Implementation:
    """The implementation of attention that runs.

    Fused attention never writes the scores to memory. cuDNN's exists for half precision on NVIDIA
    GPUs, for head dimensions that are multiples of 8 up to 128; that of models/pallas_attention.py
    for TPUs, where we use it in bfloat16. Whether it works is found out by a small example, in each
    process. On CPUs there is XLA's alone.

    Args:
      asked: "xla", "pallas", or "auto" for a fused one wherever it works.
    """
    if asked == "pallas":
        return "pallas"
    if wants_fused(asked, dtype):
        backend = jax.default_backend()
        if backend == "gpu" and head_dim % 8 == 0 and head_dim <= 128:
            return "cudnn" if works_everywhere(cudnn_works, head_dim) else "xla"
        if backend == "tpu":
            return "pallas" if works_everywhere(pallas_works, head_dim) else "xla"
    return "xla"


@functools.cache
def works_everywhere(works: Callable[[int], bool], head_dim: int) -> bool:
    """Whether it does in all processes: one with another program would let the others wait.

    All of them ask, when they make the same model; later the answer is known without the others.
    """
    here = works(head_dim)
    if jax.process_count() == 1:
        return here
    all_work = bool(np.all(multihost_utils.process_allgather(np.array(here))))
    if here and not all_work:
        log.warning("attention: a fused one works here, but not in every process, so XLA's runs")
    return all_work


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


@functools.cache
def pallas_works(head_dim: int) -> bool:
    """Whether the TPU kernel compiles here, and gives what XLA's attention gives, gradients too."""
    heads = 8

    def fused(qkv: Array, bias: Array) -> Array:
        flat, bias = qkv.reshape(*qkv.shape[:2], -1), bias.reshape(-1)
        given = flat + jax.lax.stop_gradient(bias)[None, None]
        return pallas_attention.attend((given,), (bias,), heads)

    def by_xla(qkv: Array, bias: Array) -> Array:
        qkv = qkv + bias[None, None]
        y = jax.nn.dot_product_attention(*(qkv[:, :, part] for part in range(3)))
        return y.reshape(*y.shape[:2], -1)

    def run(attend: Callable[[Array, Array], Array]) -> tuple[Array, ...]:
        def loss(qkv: Array, bias: Array) -> tuple[Array, Array]:
            y = attend(qkv, bias)
            return (y * weights).astype(jnp.float32).sum(), y

        gradients, y = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(qkv, bias)
        return *gradients, y

    try:
        draw = functools.partial(jax.random.normal, dtype=jnp.bfloat16)
        qkv = draw(jax.random.key(0), (2, 50, 3, heads, head_dim))
        bias = draw(jax.random.key(2), (3, heads, head_dim))
        weights = draw(jax.random.key(1), (2, 50, heads * head_dim))
        ours, others = run(fused), run(by_xla)
        off = max(
            float(jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max())
            for a, b in zip(ours, others, strict=True)
        )
    except Exception as error:  # of many kinds, from JAX, Mosaic or XLA; all mean the same
        log.warning("attention: no TPU kernel for head dimension %d, so XLA's: %s", head_dim, error)
        return False
    if not off < 0.03:  # bfloat16 rounds to 0.004 of a number
        log.warning(
            "attention: the TPU kernel for head dimension %d is off by %.2g of the largest value; "
            "XLA's runs instead. Please report this, with your TPU's type",
            head_dim,
            off,
        )
        return False
    return True
