"""The predictor: a narrow transformer that fills in the targets' representations."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jepa_jax.config import Config, PredictorConfig
from jepa_jax.models.attention import Implementation, choose_attention
from jepa_jax.models.positions import sincos_positions
from jepa_jax.models.transformer import INIT_STD, LAYER_NORM_EPS, Transformer


class Predictor(nn.Module):
    """Predicts each target block from the context by itself (Assran et al., 2023, section 3)."""

    grid: tuple[int, int]
    output_dim: int  # width of the encoder, whose tokens are predicted
    embed_dim: int
    depth: int
    num_heads: int
    dtype: Any = jnp.float32
    remat: str = "none"
    scan_layers: bool = True
    init_std: float = INIT_STD
    attention: Implementation = "xla"
    layer_norm_eps: float = LAYER_NORM_EPS

    @nn.compact
    def __call__(
        self,
        context: Float[Array, "B C D"],
        context_index: Int[Array, "B K"],
        target_index: Int[Array, "B M T"],
    ) -> Float[Array, "B M T O"]:
        """Predicted tokens at `target_index`, from the context encoder's tokens.

        Args:
          context: tokens of the context encoder; before those of the patches there may be others,
            a class token for example, which have no position.
          context_index: the patches they stand for.
          target_index: the patches to predict. Each of the M blocks is a pass of its own: the
            tokens of one block attend to the context and to each other, not to other blocks.
        """
        B, C, _ = context.shape
        others = C - context_index.shape[1]
        _, M, T = target_index.shape
        positions = jnp.asarray(sincos_positions(self.grid, self.embed_dim))  # [N, E], float32
        kernel_init = nn.initializers.normal(self.init_std)
        dense = {"dtype": self.dtype, "kernel_init": kernel_init}

        context = nn.Dense(self.embed_dim, name="embed", **dense)(context)
        context = context + jnp.pad(positions[context_index], [(0, 0), (others, 0), (0, 0)])
        mask_token = self.param("mask_token", kernel_init, (self.embed_dim,))
        queries = mask_token[None, None, None] + positions[target_index]  # [B, M, T, E]

        context = jnp.broadcast_to(context[:, None], (B, M, C, self.embed_dim))
        x = jnp.concatenate([context, queries], axis=2)  # [B, M, C + T, E]
        x = Transformer(
            depth=self.depth,
            num_heads=self.num_heads,
            dtype=self.dtype,
            remat=self.remat,
            scan_layers=self.scan_layers,
            init_std=self.init_std,
            attention=self.attention,
            layer_norm_eps=self.layer_norm_eps,
            name="transformer",
        )(x.reshape(B * M, C + T, self.embed_dim), select=lambda tokens: tokens[:, C:])
        x = x.reshape(B, M, T, self.embed_dim)
        return nn.Dense(self.output_dim, name="proj", **dense)(x)  # [B, M, T, D]


def make_predictor(
    config: Config,
    predictor: PredictorConfig,
    *,
    output_dim: int,
    layer_norm_eps: float = LAYER_NORM_EPS,
) -> Predictor:
    """A predictor, or a decoder, over the encoder that a run's configuration describes."""
    return Predictor(
        grid=config.grid,
        output_dim=output_dim,
        embed_dim=predictor.embed_dim,
        depth=predictor.depth,
        num_heads=predictor.num_heads,
        dtype=jnp.dtype(config.compute.dtype),
        remat=config.compute.remat,
        scan_layers=config.compute.scan_layers,
        init_std=config.init.std,
        attention=choose_attention(
            config.compute.attention,
            config.compute.dtype,
            predictor.embed_dim // predictor.num_heads,
        ),
        layer_norm_eps=layer_norm_eps,
    )
