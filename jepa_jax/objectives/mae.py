"""Masked autoencoder (He et al., 2022): predict the pixels of random patches from the others."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jepa_jax.batch.masks import RandomPatches
from jepa_jax.batch.spec import BatchSpec, Shapes, image_view
from jepa_jax.config import Config, MaeConfig
from jepa_jax.models.flops import encoder_flops, predictor_flops
from jepa_jax.models.patches import gather_tokens, patchify
from jepa_jax.models.predictor import make_predictor
from jepa_jax.models.vision_transformer import encoding, init_encoder, make_encoder
from jepa_jax.objectives.objective import Clock, Objective, no_state

PIXEL_VARIANCE_EPS = 1e-6


def make(config: Config, settings: MaeConfig) -> Objective:
    """The objective. Parameters: {"encoder": ..., "decoder": ...}; no state."""
    encoder = make_encoder(config)
    patch_size, num_patches = config.model.patch_size, config.grid[0] * config.grid[1]
    values = config.data.channels * patch_size**2  # of a patch
    decoder = make_predictor(
        config,
        settings.decoder,
        output_dim=values,
        layer_norm_eps=config.model.layer_norm_eps,
    )
    num_visible = int(num_patches * (1 - settings.mask_ratio))

    def init(key: Array) -> dict[str, Any]:
        encoder_key, decoder_key = jax.random.split(key)
        index = jnp.zeros((1, 1), jnp.int32)
        context = jnp.zeros((1, 1 + config.model.class_token, config.model.embed_dim))
        return {
            "encoder": init_encoder(encoder, config, encoder_key),
            "decoder": decoder.init(decoder_key, context, index, index[None])["params"],
        }

    def loss(
        params: dict[str, Any], state: Any, batch: dict[str, Array], key: Array, clock: Clock
    ) -> tuple[Array, dict[str, Any]]:
        del state, clock
        visible, masked = batch["visible_index"], batch["masked_index"]
        tokens: Any = encoder.apply(
            {"params": params["encoder"]},
            batch["image"],
            visible,
            deterministic=False,
            rngs={"drop_path": key},
            with_class_token=True,
        )  # [B, K, D], or [B, 1 + K, D] with a class token
        predictions: Any = decoder.apply(
            {"params": params["decoder"]}, tokens, visible, masked[:, None]
        )  # [B, 1, N - K, values]
        targets = gather_tokens(patchify(batch["image"], patch_size), masked)
        if settings.normalize_pixels:
            targets = normalized_pixels(targets)
        predictions = predictions[:, 0].astype(jnp.float32)
        chex.assert_equal_shape((predictions, targets))
        return jnp.mean(jnp.square(predictions - targets)), {}

    def flops(shapes: Shapes) -> dict[str, float]:
        K, T = shapes["visible_index"].shape[1], shapes["masked_index"].shape[1]
        return {
            "encoder": encoder_flops(config.model, K, backward=True, channels=config.data.channels),
            "decoder": predictor_flops(
                width=settings.decoder.embed_dim,
                depth=settings.decoder.depth,
                outer=config.model.embed_dim,
                output=values,
                context=K + config.model.class_token,
                targets=T,
            ),
        }

    return Objective(
        needs=BatchSpec(
            views=(image_view("image", config.data, augmentations=(settings.augmentation,)),),
            masks=RandomPatches(num_patches, num_visible),
        ),
        init=init,
        loss=loss,
        state=no_state,
        encoders={"encoder": ("params", "encoder")},
        encode=encoding(encoder),
        flops=flops,
    )


def normalized_pixels(patches: Float[Array, "B N values"]) -> Float[Array, "B N values"]:
    """Each patch less its mean, divided by its standard deviation (He et al., section 4.1).

    Over all values of the patch, with the unbiased variance, as in the paper's code.
    """
    mean = jnp.mean(patches, axis=-1, keepdims=True)
    variance = jnp.var(patches, axis=-1, ddof=1, keepdims=True)
    return (patches - mean) / jnp.sqrt(variance + PIXEL_VARIANCE_EPS)
