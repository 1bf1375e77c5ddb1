"""LeJEPA (Balestriero & LeCun, 2025): all crops of an image agree; embeddings are normal."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jepa_jax.batch.spec import BatchSpec, Shapes
from jepa_jax.config import Config, LejepaConfig
from jepa_jax.models.flops import head_flops
from jepa_jax.models.heads import ProjectionHead
from jepa_jax.models.vision_transformer import encoding, make_encoder
from jepa_jax.objectives.objective import Clock, Objective, no_state
from jepa_jax.objectives.statistics import feature_spread, sigreg
from jepa_jax.objectives.views import (
    apply_to_views,
    crop_features,
    crop_flops,
    init_networks,
    large_and_small_crops,
)


def make(config: Config, settings: LejepaConfig) -> Objective:
    """The objective. Parameters: {"encoder": ..., "projector": ...}; no state.

      (1 - lambda) mean_v |z_v - mean of the large crops|^2 + lambda mean_v SIGReg(z_v)

    with the square's mean over the features. No moving average, no stop-gradient, no predictor.
    """
    encoder = make_encoder(config)
    widths = (settings.hidden_dim, settings.hidden_dim, settings.output_dim)
    projector = ProjectionHead(widths, last_bias=True, dtype=jnp.dtype(config.compute.dtype))

    def init(key: Array) -> dict[str, Any]:
        return init_networks(config, encoder, projector, key)

    def loss(
        params: dict[str, Any], state: Any, batch: dict[str, Array], key: Array, clock: Clock
    ) -> tuple[Array, dict[str, Any]]:
        del state, clock
        features = crop_features(encoder, params["encoder"], batch, key=key)  # [B, V, D]
        z = apply_to_views(projector, params["projector"], features)  # [B, V, E]
        center = jnp.mean(z[:, : settings.num_global], axis=1, keepdims=True)  # [B, 1, E]
        directions = jax.random.fold_in(key, 2)  # the same for all views

        def normality(view: Array) -> Array:
            return sigreg(view, directions, num_directions=settings.num_directions)

        scale = 1.0 if settings.times_batch_size else 1.0 / len(z)
        terms = {
            "invariance": jnp.mean(jnp.square(z - center)),
            "sigreg": scale * jnp.mean(jax.vmap(normality, in_axes=1)(z)),
        }
        share = settings.regularization
        value = (1.0 - share) * terms["invariance"] + share * terms["sigreg"]
        return value, {"metrics": {**terms, "embedding_spread": feature_spread(z[:, 0])}}

    def flops(shapes: Shapes) -> dict[str, float]:
        del shapes
        crops = settings.num_global + settings.num_local
        return {
            "encoder": crop_flops(config, settings, num_global=settings.num_global),
            "projector": crops * head_flops(config.model.embed_dim, *widths),
        }

    return Objective(
        needs=BatchSpec(
            views=large_and_small_crops(
                config,
                settings,
                num_global=settings.num_global,
                global_augmentations=(settings.augmentation,),
                local_augmentation=settings.augmentation,
            )
        ),
        init=init,
        loss=loss,
        state=no_state,
        encoders={"encoder": ("params", "encoder")},
        encode=encoding(encoder),
        flops=flops,
        mean_over_examples=False,
    )
