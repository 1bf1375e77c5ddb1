"""Pre-norm transformer blocks, shared by the encoder and the predictor."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

# Of all kernels, as published. The published normal is cut at an absolute +-2, which is 100
# standard deviations: no draw is ever cut.
INIT_STD = 0.02
LAYER_NORM_EPS = 1e-6

_REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


# Examples are divided over these axes of the mesh, in every array of activations.
BATCH_AXES = ("data", "fsdp")


def divide(x: Array, *axes: Any) -> Array:
    """Tells the compiler which axes of the mesh divide which dimensions of an activation.

    Without a mesh it does nothing. Left to itself, the compiler may choose to keep a layer's
    parameters divided and to move activations instead, which are far larger.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(BATCH_AXES, *axes))


def layer_norm(dtype: Any, name: str) -> nn.LayerNorm:
    """LayerNorm with float32 statistics and arithmetic; only its output has `dtype`."""
    return nn.LayerNorm(epsilon=LAYER_NORM_EPS, dtype=dtype, use_fast_variance=False, name=name)


class Attention(nn.Module):
    """Multi-head self-attention over all tokens it is given; no mask exists anywhere."""

    num_heads: int
    dtype: Any
    init_std: float

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        dim, kernel_init = x.shape[-1], nn.initializers.normal(self.init_std)
        qkv = nn.DenseGeneral(
            (3, self.num_heads, dim // self.num_heads),
            dtype=self.dtype,
            kernel_init=kernel_init,
            name="qkv",
        )(x)  # [B, N, 3, heads, head_dim]
        qkv = divide(qkv, None, None, "tensor")
        query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        x = jax.nn.dot_product_attention(query, key, value)  # softmax in float32
        return nn.DenseGeneral(
            dim, axis=(-2, -1), dtype=self.dtype, kernel_init=kernel_init, name="proj"
        )(x)  # [B, N, D]


class Mlp(nn.Module):
    """Two dense layers with the exact (erf) GELU between them."""

    hidden_dim: int
    dtype: Any
    init_std: float

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        dim, kernel_init = x.shape[-1], nn.initializers.normal(self.init_std)
        x = nn.Dense(self.hidden_dim, dtype=self.dtype, kernel_init=kernel_init, name="fc1")(x)
        x = nn.gelu(divide(x, None, "tensor"), approximate=False)
        return nn.Dense(dim, dtype=self.dtype, kernel_init=kernel_init, name="fc2")(x)


class Block(nn.Module):
    """One pre-norm block, with stochastic depth (Huang et al., 2016) on both branches."""

    num_heads: int
    mlp_ratio: float
    dtype: Any
    init_std: float
    stochastic: bool  # draw which branches to drop; needs the random stream "drop_path"

    def drop_path(
        self, branch: Float[Array, "B N D"], rate: Float[Array, ""]
    ) -> Float[Array, "B N D"]:
        if not self.stochastic:
            return branch
        keep = jax.random.bernoulli(self.make_rng("drop_path"), 1.0 - rate, (len(branch), 1, 1))
        return jnp.where(keep, branch / (1.0 - rate), 0.0).astype(branch.dtype)

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"], rate: Float[Array, ""]):
        dim, x = x.shape[-1], divide(x)
        y = layer_norm(self.dtype, "norm1")(x)
        y = Attention(self.num_heads, self.dtype, self.init_std, name="attention")(y)
        x = x + self.drop_path(y, rate)
        y = layer_norm(self.dtype, "norm2")(x)
        y = Mlp(int(dim * self.mlp_ratio), self.dtype, self.init_std, name="mlp")(y)
        return x + self.drop_path(y, rate), None


class Transformer(nn.Module):
    """`depth` blocks and a final LayerNorm.

    The parameters of all blocks are stacked along a first axis of length `depth`, whether the
    blocks run as a compiled loop (`scan_layers`) or unrolled: the numbers and the checkpoints are
    the same, and only compile time and fusion differ.

    `dtype` is that of the matrix products. What runs past the branches, and is added to by them,
    stays float32, as in the published code's mixed precision: in bfloat16 small branches would be
    rounded away. The output is float32.
    """

    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    drop_path_rate: float = 0.0
    dtype: Any = jnp.float32
    remat: str = "none"
    scan_layers: bool = True
    init_std: float = INIT_STD

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"], *, deterministic: bool = True
    ) -> Float[Array, "B N D"]:
        block = Block
        if self.remat != "none":
            # Inside a loop XLA can't merge the recomputation with the first computation.
            block = nn.remat(
                Block, policy=_REMAT_POLICIES[self.remat], prevent_cse=not self.scan_layers
            )
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "drop_path": True},
            length=self.depth,
            unroll=1 if self.scan_layers else self.depth,
        )(
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            dtype=self.dtype,
            init_std=self.init_std,
            stochastic=self.drop_path_rate > 0 and not deterministic,
            name="blocks",
        )
        x, _ = blocks(x, jnp.linspace(0.0, self.drop_path_rate, self.depth))
        return layer_norm(jnp.float32, "norm")(divide(x))


def rescale_by_depth(params: dict[str, Any]) -> dict[str, Any]:
    """Divides the last kernel of both branches of block l = 1, 2, ... by sqrt(2 l).

    Args:
      params: parameters of a `Transformer`, the blocks' stacked along axis 0.
    """

    def rescale(path: tuple[Any, ...], leaf: Array) -> Array:
        names = [key.key for key in path]
        if names[0] != "blocks" or names[-2:] not in (["proj", "kernel"], ["fc2", "kernel"]):
            return leaf
        layer = jnp.arange(1, leaf.shape[0] + 1, dtype=leaf.dtype)
        return leaf / jnp.sqrt(2 * layer).reshape(-1, *[1] * (leaf.ndim - 1))

    return jax.tree_util.tree_map_with_path(rescale, params)
