"""I-JEPA (Assran et al., 2023): predict the representations of target blocks from a context."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jepa_jax.config import Config
from jepa_jax.models.patches import gather_tokens
from jepa_jax.models.predictor import make_predictor
from jepa_jax.models.transformer import rescale_by_depth
from jepa_jax.models.vision_transformer import make_encoder
from jepa_jax.objectives.objective import Objective

TARGET_LAYER_NORM_EPS = 1e-5


def make_objective(config: Config) -> Objective:
    """The objective of a run's configuration. Parameters: {"encoder": ..., "predictor": ...}."""
    encoder, predictor = make_encoder(config), make_predictor(config)

    def init(key: Array) -> dict[str, Any]:
        encoder_key, predictor_key = jax.random.split(key)
        image = jnp.zeros((1, *config.data.image_size, 3))
        index = jnp.zeros((1, 1), jnp.int32)
        context = jnp.zeros((1, 1, config.model.embed_dim))
        params = {
            "encoder": encoder.init(encoder_key, image)["params"],
            "predictor": predictor.init(predictor_key, context, index, index[None])["params"],
        }
        if config.init.depth_rescale:
            for network in params.values():
                network["transformer"] = rescale_by_depth(network["transformer"])
        return params

    def loss(params: dict[str, Any], target: Any, batch: dict[str, Array], key: Array) -> Array:
        targets = target_tokens(encoder.apply({"params": target}, batch["image"]))  # [B, N, D]
        targets = jax.lax.stop_gradient(gather_blocks(targets, batch["target_index"]))
        context = encoder.apply(
            {"params": params["encoder"]},
            batch["image"],
            batch["context_index"],
            deterministic=False,
            rngs={"drop_path": key},
        )  # [B, K, D]
        predictions = predictor.apply(
            {"params": params["predictor"]}, context, batch["context_index"], batch["target_index"]
        )  # [B, M, T, D]
        return prediction_loss(predictions, targets, config.objective.loss)

    def encode(target: Any, images: Array) -> Array:
        return encoder.apply({"params": target}, images)

    return Objective(
        init=init, loss=loss, target_of=lambda params: params["encoder"], encode=encode
    )


def target_tokens(tokens: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
    """LayerNorm without parameters over the features of each token, in float32."""
    tokens = tokens.astype(jnp.float32)
    return jax.nn.standardize(tokens, axis=-1, epsilon=TARGET_LAYER_NORM_EPS)


def gather_blocks(
    tokens: Float[Array, "B N D"], index: Int[Array, "B M T"]
) -> Float[Array, "B M T D"]:
    """Each image's tokens of each of its target blocks."""
    return jax.vmap(gather_tokens, in_axes=(None, 1), out_axes=1)(tokens, index)


def prediction_loss(
    predictions: Float[Array, "B M T D"], targets: Float[Array, "B M T D"], kind: str
) -> Float[Array, ""]:
    """Mean over images, blocks, tokens and features, in float32.

    Args:
      kind: "l2", the squared difference (section 3); or "smooth_l1" with beta = 1, with which the
        published weights were trained: half the square below 1, the absolute value less 1/2 above.
    """
    difference = predictions.astype(jnp.float32) - targets
    square = jnp.square(difference)
    if kind == "l2":
        return jnp.mean(square)
    distance = jnp.abs(difference)
    return jnp.mean(jnp.where(distance < 1.0, 0.5 * square, distance - 0.5))
