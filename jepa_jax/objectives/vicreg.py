"""VICReg (Bardes et al., 2022): two views agree, and no feature is constant or repeats another."""

import functools
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jepa_jax.batch.spec import BatchSpec, Shapes, image_view
from jepa_jax.config import Config, VicregConfig
from jepa_jax.models.flops import head_flops
from jepa_jax.models.heads import ProjectionHead
from jepa_jax.models.vision_transformer import encoding, make_encoder
from jepa_jax.objectives.objective import Clock, Objective, no_state
from jepa_jax.objectives.statistics import covariance_term, feature_spread, variance_term
from jepa_jax.objectives.views import (
    init_networks,
    view_features,
    view_flops,
)


def make(config: Config, settings: VicregConfig) -> Objective:
    """The objective. Parameters: {"encoder": ..., "expander": ...}; no state.

    By default with the normalisation of the paper's code: the variance term is the mean of the two
    views', the covariance term their sum.
    """
    encoder = make_encoder(config)
    widths = (settings.expander_dim,) * 3
    augmentations = (settings.augmentation, settings.second_augmentation)
    expander = ProjectionHead(widths, dtype=jnp.dtype(config.compute.dtype))
    variance_share = {"mean": 0.5, "sum": 1.0}[settings.variance_over_views]
    covariance = functools.partial(covariance_term, divisor=settings.covariance_divisor)

    def expand(weights: Any, features: Array) -> Any:
        return expander.apply({"params": weights}, features)

    def init(key: Array) -> dict[str, Any]:
        return init_networks(config, encoder, expander, key, head_name="expander")

    def loss(
        params: dict[str, Any], state: Any, batch: dict[str, Array], key: Array, clock: Clock
    ) -> tuple[Array, dict[str, Any]]:
        del state, clock

        features = view_features(encoder, params["encoder"], batch["views"], key=key)  # [B, 2, D]
        # Each view has its own batch statistics.
        a, b = (expand(params["expander"], features[:, view]) for view in range(2))
        terms = {
            "invariance": jnp.mean(jnp.square(a - b)),
            "variance": variance_share * (variance_term(a) + variance_term(b)),
            "covariance": covariance(a) + covariance(b),
        }
        value = (
            settings.invariance_weight * terms["invariance"]
            + settings.variance_weight * terms["variance"]
            + settings.covariance_weight * terms["covariance"]
        )
        return value, {"metrics": {**terms, "embedding_spread": feature_spread(a)}}

    def flops(shapes: Shapes) -> dict[str, float]:
        del shapes
        return {
            "encoder": 2 * view_flops(config, config.data.image_size),
            "expander": 2 * head_flops(config.model.embed_dim, *widths),
        }

    return Objective(
        needs=BatchSpec(
            views=(image_view("views", config.data, number=2, augmentations=augmentations),)
        ),
        init=init,
        loss=loss,
        state=no_state,
        encoders={"encoder": ("params", "encoder")},
        encode=encoding(encoder),
        flops=flops,
        mean_over_examples=False,
    )
