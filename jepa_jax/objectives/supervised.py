"""Supervised classification: the control that sees labels (Dosovitskiy et al., 2021).

Cross-entropy with label smoothing (Szegedy et al., 2016) of a linear classifier on the average of
the patch tokens. With mixup, CutMix, a moving average and `optimizer.layer_decay` it is the usual
recipe to fine-tune a pretrained encoder (He et al., 2022, appendix A.1).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jepa_jax.batch.spec import BatchSpec, Shapes, image_view
from jepa_jax.config import Config, SupervisedConfig
from jepa_jax.models.flops import encoder_flops
from jepa_jax.models.vision_transformer import encoding, init_encoder, make_encoder
from jepa_jax.objectives.ema import follow_parameters
from jepa_jax.objectives.mixing import mix
from jepa_jax.objectives.objective import Clock, Objective, no_state


def make(config: Config, settings: SupervisedConfig) -> Objective:
    """The objective. Parameters: {"encoder": ..., "head": ...}; state: their average, or none."""
    encoder = make_encoder(config)
    head = nn.Dense(settings.num_classes, kernel_init=nn.initializers.zeros)  # as ViT's

    def init(key: Array) -> dict[str, Any]:
        encoder_key, head_key = jax.random.split(key)
        return {
            "encoder": init_encoder(encoder, config, encoder_key),
            "head": head.init(head_key, jnp.zeros((1, config.model.embed_dim)))["params"],
        }

    def loss(
        params: dict[str, Any], state: Any, batch: dict[str, Array], key: Array, clock: Clock
    ) -> tuple[Array, dict[str, Any]]:
        del state, clock
        images, labels = batch["image"], batch["label"]
        targets = smoothed(labels, settings.num_classes, settings.label_smoothing)
        images, targets = mix(
            images,
            targets,
            mixup=settings.mixup,
            cutmix=settings.cutmix,
            key=jax.random.fold_in(key, 1),
        )
        tokens: Any = encoder.apply(
            {"params": params["encoder"]},
            images,
            deterministic=False,
            rngs={"drop_path": key},
        )  # [B, N, D]
        logits: Any = head.apply({"params": params["head"]}, jnp.mean(tokens, axis=1))
        # Of mixed images, how often it is the label of the larger part.
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == jnp.argmax(targets, axis=-1))
        value = jnp.mean(optax.softmax_cross_entropy(logits, targets))
        return value, {"metrics": {"train_accuracy": accuracy}}

    def classify(params: dict[str, Any], state: Any, images: Array) -> Any:
        weights = params if settings.ema is None else state.target
        tokens: Any = encoder.apply({"params": weights["encoder"]}, images)
        return head.apply({"params": weights["head"]}, jnp.mean(tokens, axis=1))

    def flops(shapes: Shapes) -> dict[str, float]:
        del shapes
        tokens = config.grid[0] * config.grid[1]
        channels = config.data.channels
        head_flops = 6.0 * config.model.embed_dim * settings.num_classes
        return {
            "encoder": encoder_flops(config.model, tokens, backward=True, channels=channels),
            "head": head_flops,
        }

    def average(horizon: float) -> optax.GradientTransformation:
        del horizon
        return follow_parameters(lambda _: jnp.float32(settings.ema), lambda params: params)

    encoders: dict[str, tuple[str, ...]] = {"encoder": ("params", "encoder")}
    if settings.ema is not None:
        encoders = {"averaged_encoder": ("objective_state", "target", "encoder"), **encoders}
    return Objective(
        needs=BatchSpec(
            views=(image_view("image", config.data, augmentations=(settings.augmentation,)),),
            labels=settings.num_classes,
        ),
        init=init,
        loss=loss,
        state=no_state if settings.ema is None else average,
        encoders=encoders,
        encode=encoding(encoder),
        flops=flops,
        classify=classify,
    )


def smoothed(
    labels: Int[Array, "B"], num_classes: int, smoothing: float
) -> Float[Array, "B classes"]:
    """(1 - smoothing) one-hot + smoothing / classes."""
    return optax.smooth_labels(jax.nn.one_hot(labels, num_classes), smoothing)


def cross_entropy(
    logits: Float[Array, "B classes"], labels: Int[Array, "B"], smoothing: float
) -> Float[Array, ""]:
    """Mean of -sum_c q_c log softmax(logits)_c, q = (1 - smoothing) one-hot + smoothing / C."""
    targets = smoothed(labels, logits.shape[-1], smoothing)
    return jnp.mean(optax.softmax_cross_entropy(logits, targets))
