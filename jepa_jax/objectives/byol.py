"""BYOL (Grill et al., 2020): predict what a moving average makes of the other view."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jepa_jax.batch.spec import BatchSpec, Shapes, image_view
from jepa_jax.config import ByolConfig, Config
from jepa_jax.models.flops import head_flops
from jepa_jax.models.heads import ProjectionHead
from jepa_jax.models.vision_transformer import encoding, init_encoder, make_encoder
from jepa_jax.objectives.ema import average_outlook, averaging, momentum_at
from jepa_jax.objectives.objective import Clock, Objective
from jepa_jax.objectives.statistics import cosine_distance, direction_spread
from jepa_jax.objectives.views import view_features, view_flops


def make(config: Config, settings: ByolConfig) -> Objective:
    """The objective. Parameters: {"encoder", "projector", "predictor"}; state: `EmaState`.

    The average is that of encoder and projector. The encoder that is trained is probed.
    """
    encoder = make_encoder(config)
    widths = (settings.hidden_dim, settings.output_dim)
    dtype = jnp.dtype(config.compute.dtype)
    projector, predictor = ProjectionHead(widths, dtype=dtype), ProjectionHead(widths, dtype=dtype)

    def init(key: Array) -> dict[str, Any]:
        encoder_key, projector_key, predictor_key = jax.random.split(key, 3)
        feature = jnp.zeros((1, config.model.embed_dim))
        params = {
            "encoder": init_encoder(encoder, config, encoder_key),
            "projector": projector.init(projector_key, feature)["params"],
        }
        if settings.use_predictor:
            embedding = jnp.zeros((1, settings.output_dim))
            params["predictor"] = predictor.init(predictor_key, embedding)["params"]
        return params

    def loss(
        params: dict[str, Any], state: Any, batch: dict[str, Array], key: Array, clock: Clock
    ) -> tuple[Array, dict[str, Any]]:
        # Each view has its own batch statistics, in both heads.
        def project(weights: Any, key: Array | None) -> list[Any]:  # two of [B, E]
            features = view_features(encoder, weights["encoder"], batch["views"], key=key)
            return [
                projector.apply({"params": weights["projector"]}, features[:, view])
                for view in range(2)
            ]

        targets = jax.lax.stop_gradient(project(state.target, None))
        online = project(params, key)
        if settings.use_predictor:
            online = [predictor.apply({"params": params["predictor"]}, z) for z in online]
        value = cosine_distance(online[0], targets[1]) + cosine_distance(online[1], targets[0])
        momentum = momentum_at(settings.ema, clock.step, clock.horizon)
        spread = direction_spread(targets[0])
        return value, {"metrics": {"momentum": momentum, "embedding_spread": spread}}

    def flops(shapes: Shapes) -> dict[str, float]:
        del shapes
        size = config.data.image_size
        projection = head_flops(config.model.embed_dim, *widths)
        prediction = head_flops(settings.output_dim, *widths) * settings.use_predictor
        return {
            "encoder": 2 * view_flops(config, size),
            "target": 2 * (view_flops(config, size, backward=False) + projection / 3),
            "heads": 2 * (projection + prediction),
        }

    augmentations = (settings.augmentation, settings.second_augmentation)
    views = image_view("views", config.data, number=2, augmentations=augmentations)
    return Objective(
        needs=BatchSpec(views=(views,)),
        init=init,
        loss=loss,
        state=averaging(
            settings.ema, lambda params: {name: params[name] for name in ("encoder", "projector")}
        ),
        encoders={
            "encoder": ("params", "encoder"),
            "target_encoder": ("objective_state", "target", "encoder"),
        },
        encode=encoding(encoder),
        flops=flops,
        mean_over_examples=False,
        outlook=functools.partial(average_outlook, settings.ema),
    )
