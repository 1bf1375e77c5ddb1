"""Supervised classification: the control that sees labels (Dosovitskiy et al., 2021).

Cross-entropy with label smoothing (Szegedy et al., 2016) of a linear classifier on the average of
the patch tokens.
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
from jepa_jax.models.vision_transformer import make_encoder
from jepa_jax.objectives.objective import Clock, Objective, no_state


def make(config: Config, settings: SupervisedConfig) -> Objective:
    """The objective. Parameters: {"encoder": ..., "head": ...}; no state."""
    encoder = make_encoder(config)
    head = nn.Dense(settings.num_classes, kernel_init=nn.initializers.zeros)  # as ViT's

    def init(key: Array) -> dict[str, Any]:
        encoder_key, head_key = jax.random.split(key)
        image = jnp.zeros((1, *config.data.image_size, config.data.channels))
        return {
            "encoder": encoder.init(encoder_key, image)["params"],
            "head": head.init(head_key, jnp.zeros((1, config.model.embed_dim)))["params"],
        }

    def loss(
        params: dict[str, Any], state: Any, batch: dict[str, Array], key: Array, clock: Clock
    ) -> tuple[Array, dict[str, Any]]:
        del state, clock
        tokens: Any = encoder.apply(
            {"params": params["encoder"]},
            batch["image"],
            deterministic=False,
            rngs={"drop_path": key},
        )  # [B, N, D]
        logits: Any = head.apply({"params": params["head"]}, jnp.mean(tokens, axis=1))
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == batch["label"])
        value = cross_entropy(logits, batch["label"], settings.label_smoothing)
        return value, {"metrics": {"train_accuracy": accuracy}}

    def encode(weights: Any, images: Array, layers: tuple[int, ...] | None = None) -> Any:
        return encoder.apply({"params": weights}, images, layers=layers)

    def flops(shapes: Shapes) -> dict[str, float]:
        del shapes
        tokens = config.grid[0] * config.grid[1]
        channels = config.data.channels
        head_flops = 6.0 * config.model.embed_dim * settings.num_classes
        return {
            "encoder": encoder_flops(config.model, tokens, backward=True, channels=channels),
            "head": head_flops,
        }

    return Objective(
        needs=BatchSpec(
            views=(image_view("image", config.data, augmentations=(settings.augmentation,)),),
            labels=settings.num_classes,
        ),
        init=init,
        loss=loss,
        state=no_state,
        encoders={"encoder": ("params", "encoder")},
        encode=encode,
        flops=flops,
    )


def cross_entropy(
    logits: Float[Array, "B classes"], labels: Int[Array, "B"], smoothing: float
) -> Float[Array, ""]:
    """Mean of -sum_c q_c log softmax(logits)_c, q = (1 - smoothing) one-hot + smoothing / C."""
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    return jnp.mean(optax.softmax_cross_entropy(logits, targets))
