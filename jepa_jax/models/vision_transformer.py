"""The encoder: a vision transformer that embeds only the patches it is asked for."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jepa_jax.config import Config
from jepa_jax.models.attention import Implementation, choose_attention
from jepa_jax.models.patches import gather_tokens, patchify
from jepa_jax.models.positions import interpolate_positions, sincos_positions
from jepa_jax.models.transformer import INIT_STD, LAYER_NORM_EPS, Transformer


class VisionTransformer(nn.Module):
    """Vision transformer (Dosovitskiy et al., 2021), by default without class token.

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
    attention: Implementation = "xla"
    positions: str = "sincos"  # or "learned"
    class_token: bool = False  # has no position
    layer_norm_eps: float = LAYER_NORM_EPS

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "B H W C"],
        index: Int[Array, "B K"] | None = None,
        *,
        deterministic: bool = True,
        layers: tuple[int, ...] | None = None,
        with_class_token: bool = False,
        replaced: tuple[Int[Array, "B R"], Float[Array, " D"]] | None = None,
        final_norm: bool = True,
    ) -> Float[Array, "B T D"] | Float[Array, "L B T D"]:
        """Encodes the patches at `index` (all if None), which attend to each other alone.

        Args:
          images: normalised pixels; H and W multiples of the patch size. At another size than the
            model was trained at, the position table is interpolated.
          index: raster-order patch indices, sorted and unique within an image.
          deterministic: no stochastic depth; otherwise the stream "drop_path" is needed.
          layers: the blocks whose outputs are wanted, ascending, counted from 0; they come stacked
            (the last block's alone if None).
          with_class_token: put the class token before the patches' tokens: [B, 1 + K, D].
          replaced: patches whose embeddings are replaced by a mask token, and this token; of the
            patches all that is left is where they are. Without `index`.
          final_norm: whether the outputs of `layers` pass through the last LayerNorm.

        Returns:
          Tokens after the last LayerNorm, float32.
        """
        fixed = sincos_positions(self.grid, self.embed_dim)
        table: np.ndarray | Array = fixed
        if self.positions == "learned":
            table = self.param("pos_embed", lambda _: jnp.asarray(fixed))
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
        else:
            positions = positions[None]  # [1, N, D]
        x = nn.Dense(
            self.embed_dim,
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(self.init_std),
            name="patch_embed",
        )(patches)
        if replaced is not None:
            masked, token = replaced
            raster = jnp.arange(x.shape[1])
            is_masked = jnp.any(masked[:, :, None] == raster[None, None], axis=1)  # [B, N]
            x = jnp.where(is_masked[..., None], token[None, None].astype(x.dtype), x)
        x = x + positions  # [B, K, D], float32 from here on
        if self.class_token:
            normal = nn.initializers.normal(self.init_std)
            token = self.param("cls_token", normal, (self.embed_dim,))
            token = jnp.broadcast_to(token, (x.shape[0], 1, self.embed_dim))
            x = jnp.concatenate([token, x], axis=1)  # [B, 1 + K, D]
        x = Transformer(
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
        )(x, deterministic=deterministic, layers=layers, final_norm=final_norm)
        return x[..., 1:, :] if self.class_token and not with_class_token else x


def make_encoder(config: Config) -> VisionTransformer:
    """The encoder that a run's configuration describes."""
    model, compute = config.model, config.compute
    return VisionTransformer(
        grid=config.grid,
        patch_size=model.patch_size,
        embed_dim=model.embed_dim,
        depth=model.depth,
        num_heads=model.num_heads,
        mlp_ratio=model.mlp_ratio,
        drop_path_rate=model.drop_path_rate,
        dtype=jnp.dtype(compute.dtype),
        remat=compute.remat,
        scan_layers=compute.scan_layers,
        init_std=config.init.std,
        attention=choose_attention(
            compute.attention, compute.dtype, model.embed_dim // model.num_heads
        ),
        positions=model.positions,
        class_token=model.class_token,
        layer_norm_eps=model.layer_norm_eps,
    )


def init_encoder(encoder: VisionTransformer, config: Config, key: Array) -> dict[str, Any]:
    """The encoder's parameters before any training."""
    image = jnp.zeros((1, *config.data.image_size, config.data.channels))
    return encoder.init(key, image)["params"]


def encoding(encoder: VisionTransformer) -> Callable[..., Any]:
    """`Objective.encode` of an encoder: (weights, images, layers) -> the patches' tokens."""

    def encode(weights: Any, images: Array, layers: tuple[int, ...] | None = None) -> Any:
        return encoder.apply({"params": weights}, images, layers=layers)

    return encode
