"""VICReg (Bardes et al., 2022): two views agree, and no feature is constant or repeats another."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jepa_jax.batch.spec import BatchSpec, Shapes, image_view
from jepa_jax.config import Config, VicregConfig
from jepa_jax.models.flops import encoder_flops
from jepa_jax.models.heads import ProjectionHead
from jepa_jax.models.vision_transformer import make_encoder
from jepa_jax.objectives.objective import Clock, Objective, no_state
from jepa_jax.objectives.statistics import covariance_term, variance_term


def make(config: Config, settings: VicregConfig) -> Objective:
    """The objective. Parameters: {"encoder": ..., "expander": ...}; no state.

    With the normalisation of the paper's code: the variance term is the mean of the two views', the
    covariance term their sum.
    """
    encoder = make_encoder(config)
    widths = (settings.expander_dim,) * 3
    augmentations = (settings.augmentation, settings.second_augmentation)
    expander = ProjectionHead(widths, dtype=jnp.dtype(config.compute.dtype))

    def init(key: Array) -> dict[str, Any]:
        encoder_key, expander_key = jax.random.split(key)
        image = jnp.zeros((1, *config.data.image_size, config.data.channels))
        pooled = jnp.zeros((1, config.model.embed_dim))
        return {
            "encoder": encoder.init(encoder_key, image)["params"],
            "expander": expander.init(expander_key, pooled)["params"],
        }

    def loss(
        params: dict[str, Any], state: Any, batch: dict[str, Array], key: Array, clock: Clock
    ) -> tuple[Array, dict[str, Any]]:
        del state, clock

        def expand(images: Array, key: Array) -> Any:  # [B, H, W, C] -> [B, E]
            tokens: Any = encoder.apply(
                {"params": params["encoder"]},
                images,
                deterministic=False,
                rngs={"drop_path": key},
            )  # [B, N, D]
            return expander.apply({"params": params["expander"]}, jnp.mean(tokens, axis=1))

        a, b = (expand(batch["views"][:, view], jax.random.fold_in(key, view)) for view in range(2))
        terms = {
            "invariance": jnp.mean(jnp.square(a - b)),
            "variance": 0.5 * (variance_term(a) + variance_term(b)),
            "covariance": covariance_term(a) + covariance_term(b),
        }
        value = (
            settings.invariance_weight * terms["invariance"]
            + settings.variance_weight * terms["variance"]
            + settings.covariance_weight * terms["covariance"]
        )
        return value, {"metrics": terms}

    def encode(weights: Any, images: Array, layers: tuple[int, ...] | None = None) -> Any:
        return encoder.apply({"params": weights}, images, layers=layers)

    def flops(shapes: Shapes) -> dict[str, float]:
        del shapes
        channels = config.data.channels
        tokens, width = config.grid[0] * config.grid[1], settings.expander_dim
        return {
            "encoder": 2 * encoder_flops(config.model, tokens, backward=True, channels=channels),
            "expander": 2 * 6.0 * (config.model.embed_dim * width + 2 * width**2),
        }

    return Objective(
        needs=BatchSpec(
            views=(image_view("views", config.data, number=2, augmentations=augmentations),)
        ),
        init=init,
        loss=loss,
        state=no_state,
        encoders={"encoder": ("params", "encoder")},
        encode=encode,
        flops=flops,
        mean_over_examples=False,
    )
