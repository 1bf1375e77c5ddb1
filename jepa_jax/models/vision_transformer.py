"""The encoder: a vision transformer that embeds only the patches it is asked for."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jepa_jax.config import Config
from jepa_jax.models.attention import choose_attention
from jepa_jax.models.patches import gather_tokens, patchify
from jepa_jax.models.positions import interpolate_positions, sincos_positions
from jepa_jax.models.transformer import INIT_STD, LAYER_NORM_EPS, Transformer


class VisionTransformer(nn.Module):
    """Vision transformer without class token (Assran et al., 2023).

    Its positions are the fixed sine-cosine table, or start as that and are learned.
    """

    grid: tuple[int, int]  # rows and columns of patches that the model is trained at
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    drop_path_rate: float = 0.0
    dtype: Any = jnp.float32
    remat: str = "none"
    scan_layers: bool = True
    init_std: float = INIT_STD
    attention: str = "xla"
    positions: str = "sincos"  # or "learned"
    layer_norm_eps: float = LAYER_NORM_EPS

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "B H W C"],
        index: Int[Array, "B K"] | None = None,
        *,
        deterministic: bool = True,
        layers: tuple[int, ...] | None = None,
    ) -> Float[Array, "B K D"] | Float[Array, "L B K D"]:
        """Encodes the patches at `index` (all if None), which attend to each other alone.

        Args:
          images: normalised pixels; H and W multiples of the patch size. At another size than the
            model was trained at, the position table is interpolated.
          index: raster-order patch indices, sorted and unique within an image.
          deterministic: no stochastic depth; otherwise the stream "drop_path" is needed.
          layers: the blocks whose outputs are wanted, ascending, counted from 0; they come stacked
            (the last block's alone if None).

        Returns:
          Tokens after the last LayerNorm, float32.
        """
        table = sincos_positions(self.grid, self.embed_dim)
        if self.positions == "learned":
            table = self.param("pos_embed", lambda _: jnp.asarray(table))
        positions = interpolate_positions(
            table,
            self.grid,
            (images.shape[1] // self.patch_size, images.shape[2] // self.patch_size),
        )  # [N, D]
        patches = patchify(images, self.patch_size)  # [B, N, p * p * C]
        if index is not None:
            # Pixels need no gradient, so gathering them first leaves no scatter to the backward.
            patches = gather_tokens(patches, index)  # [B, K, p * p * C]
            positions = positions[index]  # [B, K, D]
        x = nn.Dense(
            self.embed_dim,
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(self.init_std),
            name="patch_embed",
        )(patches)
        x = x + positions  # [B, K, D], float32 from here on
        return Transformer(
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            drop_path_rate=self.drop_path_rate,
            dtype=self.dtype,
            remat=self.remat,
            scan_layers=self.scan_layers,
            init_std=self.init_std,
            attention=self.attention,
            layer_norm_eps=self.layer_norm_eps,
            name="transformer",
        )(x, deterministic=deterministic, layers=layers)


def make_encoder(config: Config) -> VisionTransformer:
    """The encoder that a run's configuration describes."""
    model = config.model
    return VisionTransformer(
        grid=config.grid,
        patch_size=model.patch_size,
        embed_dim=model.embed_dim,
        depth=model.depth,
        num_heads=model.num_heads,
        mlp_ratio=model.mlp_ratio,
        drop_path_rate=model.drop_path_rate,
        dtype=jnp.dtype(model.dtype),
        remat=model.remat,
        scan_layers=model.scan_layers,
        init_std=config.init.std,
        attention=choose_attention(
            model.attention, model.dtype, model.embed_dim // model.num_heads
        ),
        positions=model.positions,
        layer_norm_eps=model.layer_norm_eps,
    )
