"""data2vec (Baevski et al., 2022): predict a moving average's features of the whole image."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jepa_jax.batch.masks import MaskedBlocks
from jepa_jax.batch.spec import BatchSpec, Shapes, image_view
from jepa_jax.config import Config, Data2vecConfig
from jepa_jax.models.patches import gather_tokens
from jepa_jax.models.vision_transformer import encoding, init_encoder, make_encoder
from jepa_jax.objectives.ema import average_outlook, averaging, momentum_at
from jepa_jax.objectives.objective import Clock, Objective
from jepa_jax.objectives.statistics import smooth_l1
from jepa_jax.objectives.views import view_flops

TARGET_NORM_EPS = 1e-5


def make(config: Config, settings: Data2vecConfig) -> Objective:
    """The objective. Parameters: {"encoder", "mask_token", "head"}; state: `EmaState`.

    The student sees all positions, with the mask token in place of the masked patches. The student
    is probed, as in the paper.
    """
    encoder = make_encoder(config)
    head = nn.Dense(
        config.model.embed_dim,
        dtype=jnp.dtype(config.compute.dtype),
        kernel_init=nn.initializers.normal(config.init.std),
    )
    rows, columns = config.grid
    masks = MaskedBlocks(
        grid=config.grid,
        num_masked=int(rows * columns * settings.mask_ratio),
        min_patches=settings.min_block_patches,
        aspect_ratio=settings.block_aspect_ratio,
    )
    depth = config.model.depth
    top = tuple(range(depth - settings.top_blocks, depth))

    def init(key: Array) -> dict[str, Any]:
        encoder_key, token_key, head_key = jax.random.split(key, 3)
        width = config.model.embed_dim
        return {
            "encoder": init_encoder(encoder, config, encoder_key),
            "mask_token": config.init.std * jax.random.normal(token_key, (width,)),
            "head": head.init(head_key, jnp.zeros((1, width)))["params"],
        }

    def loss(
        params: dict[str, Any], state: Any, batch: dict[str, Array], key: Array, clock: Clock
    ) -> tuple[Array, dict[str, Any]]:
        masked = batch["masked_index"]
        blocks: Any = encoder.apply(
            {"params": state.target}, batch["image"], layers=top, final_norm=False
        )  # [K, B, N, D]
        targets = jax.lax.stop_gradient(averaged_blocks(blocks, settings.target_norm))
        tokens: Any = encoder.apply(
            {"params": params["encoder"]},
            batch["image"],
            deterministic=False,
            rngs={"drop_path": key},
            replaced=(masked, params["mask_token"]),
        )  # [B, N, D]
        predictions: Any = head.apply({"params": params["head"]}, gather_tokens(tokens, masked))
        value = smooth_l1(predictions, gather_tokens(targets, masked), settings.beta)
        metrics = {
            "momentum": momentum_at(settings.ema, clock.step, clock.horizon),
            # Near 0 the targets are alike everywhere: they have collapsed.
            "target_std": jnp.mean(jnp.std(targets, axis=(0, 1))),
        }
        return value, {"metrics": metrics}

    def flops(shapes: Shapes) -> dict[str, float]:
        T = shapes["masked_index"].shape[1]
        size = config.data.image_size
        return {
            "target": view_flops(config, size, backward=False),
            "encoder": view_flops(config, size),
            "head": 6.0 * T * config.model.embed_dim**2,
        }

    return Objective(
        needs=BatchSpec(
            views=(image_view("image", config.data, augmentations=(settings.augmentation,)),),
            masks=masks,
        ),
        init=init,
        loss=loss,
        state=averaging(settings.ema, lambda params: params["encoder"]),
        encoders={
            "encoder": ("params", "encoder"),
            "target_encoder": ("objective_state", "target"),
        },
        encode=encoding(encoder),
        flops=flops,
        outlook=functools.partial(average_outlook, settings.ema),
    )


def averaged_blocks(blocks: Float[Array, "K B N D"], norm: str) -> Float[Array, "B N D"]:
    """The mean over the blocks, standardised without parameters over the features of each token.

    Args:
      norm: "average", the mean is standardised; "blocks", each block before (section 3.3).
    """

    def standardize(x: Array) -> Array:
        return jax.nn.standardize(x.astype(jnp.float32), axis=-1, epsilon=TARGET_NORM_EPS)

    if norm == "blocks":
        return jnp.mean(standardize(blocks), axis=0)
    return standardize(jnp.mean(blocks, axis=0))
