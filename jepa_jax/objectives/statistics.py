"""Statistics over a batch that objectives share.

Under jit on a batch that is sharded over the mesh, each mean and each product over its examples is
that of the whole batch.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jepa_jax.models.heads import unit_rows


def variance_term(z: Float[Array, "n D"], *, epsilon: float = 1e-4) -> Float[Array, ""]:
    """How far the standard deviations of the features fall short of 1.

    mean_j max(0, 1 - sqrt(Var_j + epsilon)), with the unbiased variance over the batch (VICReg:
    Bardes et al., 2022, equations 1 and 2).
    """
    deviation = jnp.sqrt(jnp.var(z, axis=0, ddof=1) + epsilon)
    return jnp.mean(jax.nn.relu(1.0 - deviation))


def covariance_term(z: Float[Array, "n D"], *, divisor: str = "width") -> Float[Array, ""]:
    """Squared covariances of different features, summed, divided by D.

    sum_{i != j} C_ij^2 / D with C = Z^T Z / (n - 1) of the centred features (VICReg: Bardes et al.,
    2022, equations 3 and 4).

    Args:
      divisor: "width", D; or "pairs", D (D - 1): then it is the mean over pairs of features.
    """
    n, D = z.shape
    centred = z - jnp.mean(z, axis=0, keepdims=True)
    covariance = centred.T @ centred / (n - 1)  # [D, D]
    total = jnp.sum(jnp.square(covariance)) - jnp.sum(jnp.square(jnp.diag(covariance)))
    return total / {"width": D, "pairs": D * (D - 1)}[divisor]


def sigreg(
    z: Float[Array, "n D"], key: Array, *, num_directions: int, knots: int = 17, limit: float = 3.0
) -> Float[Array, ""]:
    """How far n points are from a standard normal distribution (SIGReg).

    The Epps-Pulley statistic of the points' projections onto random unit vectors, averaged over
    these (LeJEPA: Balestriero & LeCun, 2025):

      n * integral over t of |mean_i exp(i t x_i) - exp(-t^2 / 2)|^2 * exp(-t^2 / 2)

    from -limit to limit by the trapezoid rule; the integrand is even, so that `knots` points from 0
    on are enough. Under a standard normal distribution the expectation does not depend on n (1.052
    with the defaults); away from it the statistic grows with n.
    """
    n, D = z.shape
    directions = jax.random.normal(key, (D, num_directions))
    directions = directions / jnp.linalg.norm(directions, axis=0, keepdims=True)
    t = jnp.linspace(0.0, limit, knots)
    normal = jnp.exp(-0.5 * jnp.square(t))  # its characteristic function, and the weight
    weights = jnp.full(knots, 2.0 * limit / (knots - 1)).at[jnp.array([0, -1])].divide(2.0)
    angles = jnp.einsum("ns,k->nsk", z @ directions, t)
    error = jnp.square(jnp.mean(jnp.cos(angles), axis=0) - normal[None])  # [S, knots]
    error += jnp.square(jnp.mean(jnp.sin(angles), axis=0))
    return n * jnp.mean(error @ (weights * normal))


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


def nt_xent(
    a: Float[Array, "n E"], b: Float[Array, "n E"], *, temperature: float
) -> Float[Array, ""]:
    """Cross-entropy of finding an embedding's other view among all others of the batch.

    Mean over the 2 n embeddings of -log [exp(s_ij / t) / sum_{k != i} exp(s_ik / t)], with their
    cosines s and the other view j of i (SimCLR: Chen et al., 2020, equation 1).
    """
    chex.assert_equal_shape((a, b))
    n = len(a)
    z = unit_rows(jnp.concatenate([a, b]))  # [2 n, E]
    scores = z @ z.T / temperature
    itself = jnp.eye(2 * n, dtype=bool)
    total = jax.nn.logsumexp(jnp.where(itself, -jnp.inf, scores), axis=1)  # [2 n]
    positive = jnp.sum(z * jnp.roll(z, n, axis=0), axis=1) / temperature
    return jnp.mean(total - positive)


def cosine_distance(a: Float[Array, "n E"], b: Float[Array, "n E"]) -> Float[Array, ""]:
    """Mean of 2 - 2 cos(a_i, b_i): squared distances of unit vectors (BYOL, equation 2)."""
    chex.assert_equal_shape((a, b))
    return jnp.mean(2.0 - 2.0 * jnp.sum(unit_rows(a) * unit_rows(b), axis=1))


def swapped_prediction_loss(
    targets: Float[Array, "n G K"], log_p: Float[Array, "n V K"]
) -> Float[Array, ""]:
    """Mean over examples, targets and the *other* views of -sum_k q_k log p_k.

    SwAV: Caron et al., 2020, equations 1 and 2. DINO: Caron et al., 2021, equation 3.

    Args:
      targets: assignments of the large crops, which are the first of the V views.
      log_p: log predictions from all views.
    """
    pairs = -jnp.einsum("ngk,nvk->gv", targets, log_p) / len(targets)  # [G, V]
    other = ~jnp.eye(pairs.shape[0], pairs.shape[1], dtype=bool)
    return jnp.sum(jnp.where(other, pairs, 0.0)) / (targets.shape[1] * (log_p.shape[1] - 1))


def entropy(p: Float[Array, " K"]) -> Float[Array, ""]:
    """-sum_k p_k log p_k; its exponential is how many of the K are used."""
    return -jnp.sum(jax.scipy.special.xlogy(p, p))


def feature_spread(z: Float[Array, "n D"]) -> Float[Array, ""]:
    """Standard deviation of a feature between examples, averaged over the features."""
    return jnp.mean(jnp.std(z, axis=0))


def direction_spread(z: Float[Array, "n E"]) -> Float[Array, ""]:
    """The same of the directions: 0 where all point one way, 1 where they are anywhere."""
    return jnp.sqrt(z.shape[-1]) * feature_spread(unit_rows(z))


def assignment_spread(p: Float[Array, "n K"]) -> Float[Array, ""]:
    """What an example tells of its prototype, as a share of log K: 0 to 1.

    The entropy of the mean assignment less the mean entropy of the assignments. It is 0 if all
    examples have the same assignment, be it one prototype or all of them.
    """
    each = -jnp.sum(jax.scipy.special.xlogy(p, p), axis=1)  # [n]
    return (entropy(jnp.mean(p, axis=0)) - jnp.mean(each)) / jnp.log(p.shape[1])


def smooth_l1(
    predictions: Float[Array, "*shape"], targets: Float[Array, "*shape"], beta: float
) -> Float[Array, ""]:
    """Mean of d^2 / (2 beta) where |d| < beta, of |d| - beta / 2 beyond, in float32."""
    chex.assert_equal_shape((predictions, targets))  # or they would broadcast
    distance = jnp.abs(predictions.astype(jnp.float32) - targets)
    near = 0.5 * jnp.square(distance) / beta
    return jnp.mean(jnp.where(distance < beta, near, distance - 0.5 * beta))
