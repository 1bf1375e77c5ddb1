"""Signs of collapse in the target encoder's features, measured during training."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jepa_jax.objectives.objective import Objective
from jepa_jax.training.sharding import replicated, traced_on


def make_diagnostics(objective: Objective, mesh: Mesh) -> Callable[[Any, Array], dict[str, Array]]:
    """Jitted (weights of an encoder, images [B, H, W, 3]) -> scalars.

    Of average-pooled features:
      effective_rank: RankMe; at most the smaller of B and the features' width.
      feature_std: standard deviation of a feature between images, averaged over the features.
      feature_cosine: mean cosine between the features of two different images.
    Of the tokens:
      position_share: see the function of this name.
    """

    def diagnose(weights: Any, images: Array) -> dict[str, Array]:
        tokens = objective.encode(weights, images)  # [B, N, D]
        features = jnp.mean(tokens, axis=1)  # [B, D]
        return {
            "position_share": position_share(tokens),
            "effective_rank": effective_rank(features),
            "feature_std": jnp.mean(jnp.std(features, axis=0)),
            "feature_cosine": mean_cosine(features),
        }

    return jax.jit(traced_on(mesh, diagnose), out_shardings=replicated(mesh))


def position_share(tokens: Float[Array, "B N D"]) -> Float[Array, ""]:
    """The share of the tokens' variance that their position alone explains, 0 to 1.

    The variance over the positions of what is left when the images are averaged out, by the
    variance over images and positions; both summed over the features.
    """
    of_positions = jnp.sum(jnp.var(jnp.mean(tokens, axis=0), axis=0))
    return of_positions / jnp.maximum(jnp.sum(jnp.var(tokens, axis=(0, 1))), 1e-12)


def effective_rank(features: Float[Array, "n D"]) -> Float[Array, ""]:
    """RankMe (Garrido et al., 2023, equation 1): exp of the entropy of the singular values."""
    return entropy_rank(jnp.linalg.svd(features, compute_uv=False))


def entropy_rank(values: Float[Array, " k"]) -> Float[Array, ""]:
    """exp of the entropy of the values as shares of their sum: how many of them count."""
    share = values / jnp.sum(values) + 1e-7
    return jnp.exp(-jnp.sum(share * jnp.log(share)))


def mean_cosine(features: Float[Array, "n D"]) -> Float[Array, ""]:
    """Mean cosine over all pairs of different rows."""
    n = features.shape[0]
    unit = features / jnp.linalg.norm(features, axis=1, keepdims=True)
    return (jnp.sum(jnp.square(jnp.sum(unit, axis=0))) - n) / (n * (n - 1))
