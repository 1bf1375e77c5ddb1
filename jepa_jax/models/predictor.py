"""The predictor: a narrow transformer that fills in the targets' representations."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jepa_jax.config import Config
from jepa_jax.models.attention import choose_attention
from jepa_jax.models.positions import sincos_positions
from jepa_jax.models.transformer import INIT_STD, Transformer


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
    attention: str = "xla"

    @nn.compact
    def __call__(
        self,
        context: Float[Array, "B K D"],
        context_index: Int[Array, "B K"],
        target_index: Int[Array, "B M T"],
    ) -> Float[Array, "B M T D"]:
        """Predicted tokens at `target_index`, from the context encoder's tokens.

        Args:
          context: tokens of the context encoder.
          context_index: the patches they stand for.
          target_index: the patches to predict. Each of the M blocks is a pass of its own: the
            tokens of one block attend to the context and to each other, not to other blocks.
        """
        B, K, _ = context.shape
        _, M, T = target_index.shape
        positions = jnp.asarray(sincos_positions(self.grid, self.embed_dim))  # [N, P], float32
        kernel_init = nn.initializers.normal(self.init_std)
        dense = {"dtype": self.dtype, "kernel_init": kernel_init}

        context = nn.Dense(self.embed_dim, name="embed", **dense)(context)
        context = context + positions[context_index]  # [B, K, P]
        mask_token = self.param("mask_token", kernel_init, (self.embed_dim,))
        queries = mask_token + positions[target_index]  # [B, M, T, P]

        context = jnp.broadcast_to(context[:, None], (B, M, K, self.embed_dim))
        x = jnp.concatenate([context, queries], axis=2)  # [B, M, K + T, P]
        x = Transformer(
            depth=self.depth,
            num_heads=self.num_heads,
            dtype=self.dtype,
            remat=self.remat,
            scan_layers=self.scan_layers,
            init_std=self.init_std,
            attention=self.attention,
            name="transformer",
        )(x.reshape(B * M, K + T, self.embed_dim), select=lambda tokens: tokens[:, K:])
        x = x.reshape(B, M, T, self.embed_dim)
        return nn.Dense(self.output_dim, name="proj", **dense)(x)  # [B, M, T, D]


def make_predictor(config: Config) -> Predictor:
    """The predictor that a run's configuration describes."""
    return Predictor(
        grid=config.grid,
        output_dim=config.model.embed_dim,
        embed_dim=config.predictor.embed_dim,
        depth=config.predictor.depth,
        num_heads=config.predictor.num_heads,
        dtype=jnp.dtype(config.model.dtype),
        remat=config.model.remat,
        scan_layers=config.model.scan_layers,
        init_std=config.init.std,
        attention=choose_attention(
            config.model.attention,
            config.model.dtype,
            config.predictor.embed_dim // config.predictor.num_heads,
        ),
    )
