"""Heads on features of images: projectors, expanders, predictors, prototypes."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jepa_jax.models.transformer import gelu

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
    """Dense layers, between them batch normalisation, unless without, and ReLU or the exact GELU.

    The last layer is linear.

    Its kernels start uniformly in +-1/sqrt(inputs), PyTorch's default, as in the papers' code: they
    are no part of the transformer, whose small initialisation would scale their inputs away.
    """

    widths: tuple[int, ...]  # of each layer, the output last
    last_bias: bool = False
    batch_norm: bool = True
    activation: Literal["relu", "gelu"] = "relu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n D"]) -> Float[Array, "n E"]:
        *hidden, output = self.widths
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        activate: Any = {"relu": nn.relu, "gelu": gelu}[self.activation]
        for layer, width in enumerate(hidden):
            x = nn.Dense(width, dtype=self.dtype, kernel_init=init, name=f"fc{layer + 1}")(x)
            if self.batch_norm:
                x = BatchNorm(name=f"norm{layer + 1}")(x)
            x = activate(x)  # [n, width]
        return nn.Dense(
            output,
            use_bias=self.last_bias,
            dtype=self.dtype,
            kernel_init=init,
            name=f"fc{len(self.widths)}",
        )(x).astype(jnp.float32)


def unit_rows(x: Float[Array, "*n E"]) -> Float[Array, "*n E"]:
    """Each row divided by its length."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def init_prototypes(key: Array, number: int, width: int) -> dict[str, Array]:
    """Parameters {"kernel": [K, E]}: directions that are uniform on the sphere."""
    return {"kernel": unit_rows(jax.random.normal(key, (number, width)))}


def prototype_scores(z: Float[Array, "*n E"], prototypes: dict[str, Array]) -> Float[Array, "*n K"]:
    """Cosines of embeddings with prototypes, which are scaled to unit length wherever used.

    DINO's last layer is this too: its weights are normalised (Caron et al., 2021).
    """
    return unit_rows(z) @ unit_rows(prototypes["kernel"]).T
