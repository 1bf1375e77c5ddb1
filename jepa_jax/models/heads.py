"""Heads on pooled features: projectors, expanders, classifiers."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

BATCH_NORM_EPS = 1e-5


class BatchNorm(nn.Module):
    """Batch normalisation by the statistics of this batch alone (Ioffe & Szegedy, 2015).

    Under jit the batch is the whole one, over all devices. There are no running averages: heads
    that need it are thrown away after pretraining.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "n D"]) -> Float[Array, "n D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x = jax.nn.standardize(x.astype(jnp.float32), axis=0, epsilon=BATCH_NORM_EPS)
        return x * scale[None] + bias[None]


class ProjectionHead(nn.Module):
    """Dense layers with batch normalisation and ReLU between them; the last is linear.

    Its kernels start uniformly in +-1/sqrt(inputs), PyTorch's default, as in the papers' code: they
    are no part of the transformer, whose small initialisation would scale their inputs away.
    """

    widths: tuple[int, ...]  # of each layer, the output last
    last_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n D"]) -> Float[Array, "n E"]:
        *hidden, output = self.widths
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        for layer, width in enumerate(hidden):
            dense = nn.Dense(width, dtype=self.dtype, kernel_init=init, name=f"fc{layer + 1}")
            x = nn.relu(BatchNorm(name=f"norm{layer + 1}")(dense(x)))  # [n, width]
        return nn.Dense(
            output,
            use_bias=self.last_bias,
            dtype=self.dtype,
            kernel_init=init,
            name=f"fc{len(self.widths)}",
        )(x).astype(jnp.float32)
