"""Statistics over a batch that objectives share.

Under jit on a batch that is sharded over the mesh, each mean and each product over its examples is
that of the whole batch.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def variance_term(z: Float[Array, "n D"], *, epsilon: float = 1e-4) -> Float[Array, ""]:
    """How far the standard deviations of the features fall short of 1.

    mean_j max(0, 1 - sqrt(Var_j + epsilon)), with the unbiased variance over the batch (VICReg:
    Bardes et al., 2022, equations 1 and 2).
    """
    deviation = jnp.sqrt(jnp.var(z, axis=0, ddof=1) + epsilon)
    return jnp.mean(jax.nn.relu(1.0 - deviation))


def covariance_term(z: Float[Array, "n D"]) -> Float[Array, ""]:
    """Squared covariances of different features, summed, divided by D.

    sum_{i != j} C_ij^2 / D with C = Z^T Z / (n - 1) of the centred features (VICReg: Bardes et al.,
    2022, equations 3 and 4).
    """
    n, D = z.shape
    centred = z - jnp.mean(z, axis=0, keepdims=True)
    covariance = centred.T @ centred / (n - 1)  # [D, D]
    return (jnp.sum(jnp.square(covariance)) - jnp.sum(jnp.square(jnp.diag(covariance)))) / D


def sinkhorn(
    scores: Float[Array, "n K"], *, epsilon: float, iterations: int
) -> Float[Array, "n K"]:
    """Soft assignments of n examples to K prototypes, all of which are used equally.

    exp(scores / epsilon), whose columns and rows are scaled in turn to sum to n / K and to 1
    (SwAV: Caron et al., 2020, section 3.1; Cuturi, 2013). The rows of the result sum to 1.
    """
    n, K = scores.shape
    q = jnp.exp((scores - jnp.max(scores)) / epsilon)  # any constant factor cancels
    for _ in range(iterations):
        q = q / (jnp.sum(q, axis=0, keepdims=True) * (K / n))
        q = q / jnp.sum(q, axis=1, keepdims=True)
    return q
