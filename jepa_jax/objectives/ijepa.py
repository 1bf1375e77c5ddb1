"""I-JEPA (Assran et al., 2023): predict the representations of target blocks from a context."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jepa_jax.batch.masks import MultiBlock
from jepa_jax.batch.spec import BatchSpec, Shapes, image_view
from jepa_jax.config import Config, EmaConfig, IJepaConfig
from jepa_jax.models.flops import encoder_flops, predictor_flops
from jepa_jax.models.patches import gather_tokens
from jepa_jax.models.predictor import make_predictor
from jepa_jax.models.transformer import rescale_by_depth
from jepa_jax.models.vision_transformer import make_encoder
from jepa_jax.objectives.ema import follow_parameters
from jepa_jax.objectives.objective import Clock, Objective

TARGET_LAYER_NORM_EPS = 1e-5


def make(config: Config, settings: IJepaConfig) -> Objective:
    """The objective. Parameters: {"encoder": ..., "predictor": ...}; state: `EmaState`."""
    encoder = make_encoder(config)
    predictor = make_predictor(config, settings.predictor, output_dim=config.model.embed_dim)
    needs = BatchSpec(
        views=(image_view("image", config.data),),
        masks=MultiBlock(settings.masks, config.grid),
    )

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

    def loss(
        params: dict[str, Any], state: Any, batch: dict[str, Array], key: Array, clock: Clock
    ) -> tuple[Array, dict[str, Any]]:
        tokens: Any = encoder.apply({"params": state.target}, batch["image"])  # [B, N, D]
        targets = target_tokens(tokens)
        targets = jax.lax.stop_gradient(gather_blocks(targets, batch["target_index"]))
        context: Any = encoder.apply(
            {"params": params["encoder"]},
            batch["image"],
            batch["context_index"],
            deterministic=False,
            rngs={"drop_path": key},
        )  # [B, K, D]
        predictions: Any = predictor.apply(
            {"params": params["predictor"]}, context, batch["context_index"], batch["target_index"]
        )  # [B, M, T, D]
        momentum = momentum_at(settings.ema, clock.step, clock.horizon)
        value = prediction_loss(predictions, targets, settings.loss)
        return value, {"metrics": {"momentum": momentum}}

    def encode(weights: Any, images: Array) -> Any:
        return encoder.apply({"params": weights}, images)

    def flops(shapes: Shapes) -> dict[str, float]:
        _, K = shapes["context_index"].shape
        _, M, T = shapes["target_index"].shape
        N = config.grid[0] * config.grid[1]
        return {
            "target": encoder_flops(config.model, N, backward=False),
            "context": encoder_flops(config.model, K, backward=True),
            "predictor": predictor_flops(
                width=settings.predictor.embed_dim,
                depth=settings.predictor.depth,
                outer=config.model.embed_dim,
                output=config.model.embed_dim,
                context=K,
                targets=T,
                blocks=M,
            ),
        }

    return Objective(
        needs=needs,
        init=init,
        loss=loss,
        state=lambda horizon: follow_parameters(
            lambda step: momentum_at(settings.ema, step, horizon), lambda params: params["encoder"]
        ),
        encoders={
            "target_encoder": ("objective_state", "target"),
            "encoder": ("params", "encoder"),
        },
        encode=encode,
        flops=flops,
    )


def momentum_at(ema: EmaConfig, step: Array | int, horizon: float) -> Array:
    """Of the moving average: a straight line from step 0 to the horizon."""
    share = jnp.minimum(step / horizon, 1.0)
    return ema.start_momentum + (ema.final_momentum - ema.start_momentum) * share


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
    chex.assert_equal_shape((predictions, targets))  # or they would broadcast
    difference = predictions.astype(jnp.float32) - targets
    square = jnp.square(difference)
    if kind == "l2":
        return jnp.mean(square)
    distance = jnp.abs(difference)
    return jnp.mean(jnp.where(distance < 1.0, 0.5 * square, distance - 0.5))
