"""I-JEPA (Assran et al., 2023): predict the representations of target blocks from a context."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jepa_jax.batch.masks import MultiBlock, usual_context
from jepa_jax.batch.spec import BatchSpec, Shapes, image_view
from jepa_jax.config import (
    Config,
    IJepaConfig,
    SigregConfig,
    VarianceCovarianceConfig,
)
from jepa_jax.models.flops import encoder_flops, predictor_flops
from jepa_jax.models.patches import gather_tokens
from jepa_jax.models.predictor import make_predictor
from jepa_jax.models.transformer import rescale_by_depth
from jepa_jax.models.vision_transformer import encoding, init_encoder, make_encoder
from jepa_jax.objectives.ema import average_outlook, averaging, momentum_at
from jepa_jax.objectives.objective import Clock, Objective, Outlook
from jepa_jax.objectives.statistics import covariance_term, sigreg, smooth_l1, variance_term

TARGET_NORM_EPS = 1e-5
LEAST_CONTEXT = 0.5  # of the visible patches; a run whose context is smaller is warned of


def make(config: Config, settings: IJepaConfig) -> Objective:
    """The objective. Parameters: {"encoder": ..., "predictor": ...}; state: `EmaState`."""
    encoder = make_encoder(config)
    predictor = make_predictor(config, settings.predictor, output_dim=config.model.embed_dim)
    blocks = MultiBlock(settings.masks, config.grid)
    needs = BatchSpec(views=(image_view("image", config.data),), masks=blocks)

    def init(key: Array) -> dict[str, Any]:
        encoder_key, predictor_key = jax.random.split(key)
        index = jnp.zeros((1, 1), jnp.int32)
        context = jnp.zeros((1, 1, config.model.embed_dim))
        params = {
            "encoder": init_encoder(encoder, config, encoder_key),
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
        targets = target_tokens(tokens, settings.target_norm)
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
        metrics = {"momentum": momentum}
        if settings.regularizer is not None:
            pooled = jnp.mean(context.astype(jnp.float32), axis=1)  # [B, D]
            terms = regularization(pooled, settings.regularizer, jax.random.fold_in(key, 1))
            metrics |= {"prediction_loss": value, **terms}
            value += sum(terms.values())
        return value, {"metrics": metrics}

    def predict(
        params: dict[str, Any], state: Any, images: Array, context_index: Array, target_index: Array
    ) -> tuple[Array, Array]:
        tokens: Any = encoder.apply({"params": state.target}, images)  # [B, N, D]
        targets = gather_blocks(target_tokens(tokens, settings.target_norm), target_index)
        context: Any = encoder.apply({"params": params["encoder"]}, images, context_index)
        predictions: Any = predictor.apply(
            {"params": params["predictor"]}, context, context_index, target_index
        )  # [B, M, T, D]
        return predictions.astype(jnp.float32), targets

    def flops(shapes: Shapes) -> dict[str, float]:
        _, K = shapes["context_index"].shape
        _, M, T = shapes["target_index"].shape
        N = config.grid[0] * config.grid[1]
        return {
            "target": encoder_flops(config.model, N, backward=False, channels=config.data.channels),
            "context": encoder_flops(config.model, K, backward=True, channels=config.data.channels),
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
        state=averaging(settings.ema, lambda params: params["encoder"]),
        encoders={
            "target_encoder": ("objective_state", "target"),
            "encoder": ("params", "encoder"),
        },
        encode=encoding(encoder),
        flops=flops,
        mean_over_examples=settings.target_norm == "layer_norm" and settings.regularizer is None,
        outlook=functools.partial(outlook, settings, blocks),
        predict=predict,
    )


def outlook(
    settings: IJepaConfig, blocks: MultiBlock, steps: int, horizon: float, from_scratch: bool
) -> Outlook:
    """What a run will be like, as far as its masks and its moving average decide it."""
    K, usual = settings.masks.context_tokens, usual_context(blocks)
    num_patches = blocks.grid[0] * blocks.grid[1]
    lengths = sorted(blocks.target_lengths())
    (fact,), warnings = average_outlook(settings.ema, steps, horizon, from_scratch)
    facts = (
        f"context: {K} of {num_patches} patches; targets: {settings.masks.num_targets} blocks of "
        f"{lengths[0]} to {lengths[-1]}",
        fact,
    )
    if LEAST_CONTEXT * usual > K:
        warnings += (
            f"config.objective.masks.context_tokens = {K}: half of the mask draws leave {usual} or "
            f"more of {num_patches} patches visible, and most of them are thrown away; set "
            "objective.masks.context_share=0.3 in its place",
        )
    return Outlook(facts, warnings)


def target_tokens(tokens: Float[Array, "B N D"], norm: str = "layer_norm") -> Float[Array, "B N D"]:
    """The target encoder's tokens, standardised without parameters, in float32.

    Args:
      norm: "layer_norm", each token over its features, as published; or "batch", each feature at
        each position over the images of the batch.
    """
    axis = {"layer_norm": -1, "batch": 0}[norm]
    return jax.nn.standardize(tokens.astype(jnp.float32), axis=axis, epsilon=TARGET_NORM_EPS)


def regularization(
    pooled: Float[Array, "B D"], settings: VarianceCovarianceConfig | SigregConfig, key: Array
) -> dict[str, Array]:
    """The weighted terms that are added to the loss, by name.

    Args:
      pooled: mean over the context encoder's tokens.
      key: for SIGReg's directions.
    """
    if isinstance(settings, SigregConfig):
        statistic = sigreg(pooled, key, num_directions=settings.num_directions)
        return {"sigreg_loss": settings.weight * statistic / len(pooled)}
    return {
        "variance_loss": settings.variance_weight * variance_term(pooled),
        "covariance_loss": settings.covariance_weight * covariance_term(pooled),
    }


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
        published weights were trained.
    """
    if kind == "smooth_l1":
        return smooth_l1(predictions, targets, beta=1.0)
    chex.assert_equal_shape((predictions, targets))  # or they would broadcast
    return jnp.mean(jnp.square(predictions.astype(jnp.float32) - targets))
