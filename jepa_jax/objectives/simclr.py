"""SimCLR (Chen et al., 2020): find an image's other view among all views of the batch."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jepa_jax.batch.spec import BatchSpec, Shapes, image_view
from jepa_jax.config import Config, SimclrConfig
from jepa_jax.models.flops import head_flops
from jepa_jax.models.heads import ProjectionHead
from jepa_jax.models.vision_transformer import encoding, make_encoder
from jepa_jax.objectives.objective import Clock, Objective, no_state
from jepa_jax.objectives.statistics import direction_spread, nt_xent
from jepa_jax.objectives.views import (
    apply_to_views,
    init_networks,
    view_features,
    view_flops,
)


def make(config: Config, settings: SimclrConfig) -> Objective:
    """The objective. Parameters: {"encoder": ..., "projector": ...}; no state."""
    encoder = make_encoder(config)
    widths = (settings.hidden_dim, settings.output_dim)
    projector = ProjectionHead(widths, dtype=jnp.dtype(config.compute.dtype))

    def init(key: Array) -> dict[str, Any]:
        return init_networks(config, encoder, projector, key)

    def loss(
        params: dict[str, Any], state: Any, batch: dict[str, Array], key: Array, clock: Clock
    ) -> tuple[Array, dict[str, Any]]:
        del state, clock
        features = view_features(encoder, params["encoder"], batch["views"], key=key)  # [B, 2, D]
        z = apply_to_views(projector, params["projector"], features)
        a, b = z[:, 0], z[:, 1]  # each [B, E]
        value = nt_xent(a, b, temperature=settings.temperature)
        return value, {"metrics": {"embedding_spread": direction_spread(a)}}

    def flops(shapes: Shapes) -> dict[str, float]:
        del shapes
        return {
            "encoder": 2 * view_flops(config, config.data.image_size),
            "projector": 2 * head_flops(config.model.embed_dim, *widths),
        }

    views = image_view("views", config.data, number=2, augmentations=(settings.augmentation,))
    return Objective(
        needs=BatchSpec(views=(views,)),
        init=init,
        loss=loss,
        state=no_state,
        encoders={"encoder": ("params", "encoder")},
        encode=encoding(encoder),
        flops=flops,
        mean_over_examples=False,
    )
