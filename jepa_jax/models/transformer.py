"""Pre-norm transformer blocks, shared by the encoder and the predictor."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from jepa_jax.models import pallas_attention
from jepa_jax.models.attention import Implementation
from jepa_jax.models.layout import shard

# Of all kernels, as published. The published normal is cut at an absolute +-2, which is 100
# standard deviations: no draw is ever cut.
INIT_STD = 0.02
LAYER_NORM_EPS = 1e-6

# Picks the tokens whose output is wanted: [B, N, D] -> [B, Q, D].
Select = Callable[[Array], Array]

_REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names("attention"),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def layer_norm(dtype: Any, epsilon: float, name: str) -> nn.LayerNorm:
    """LayerNorm with float32 statistics and arithmetic; only its output has `dtype`."""
    # The variance as E[x^2] - E[x]^2 needs no pass over x of its own: both are summed as x is made.
    # It is off by 1e-7 (1 + mean^2 / variance) of itself, which a bfloat16 output does not show as
    # long as the mean is below a hundred standard deviations.
    one_pass = jnp.finfo(dtype).bits < 32
    return nn.LayerNorm(epsilon=epsilon, dtype=dtype, use_fast_variance=one_pass, name=name)


@jax.custom_jvp
def gelu(x: Array) -> Array:
    """The exact (erf) GELU of Hendrycks & Gimpel (2016), in float32 inside.

    Its derivative is written out, so that one array is kept for the backward pass, and not each
    of the formula's intermediate values.
    """
    # Where there is no backward pass, XLA would fuse it into the product that follows, which on a
    # TPU computes it again for each tile of its output.
    return jax.lax.optimization_barrier(_gelu(x.astype(jnp.float32)).astype(x.dtype))


@gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    x32 = x.astype(jnp.float32)
    slope = _normal_cdf(x32) + x32 * jnp.exp(-0.5 * x32**2) * (2 * np.pi) ** -0.5
    return _gelu(x32).astype(x.dtype), slope.astype(x.dtype) * dx


def _gelu(x: Array) -> Array:
    return x * _normal_cdf(x)


def _normal_cdf(x: Array) -> Array:
    return 0.5 * (1.0 + jax.lax.erf(x * 0.5**0.5))


class QKV(nn.Module):
    """The queries, keys and values of attention, from one stacked kernel.

    All of them in one array; or, where queries are wanted of some tokens only, queries in one, keys
    and values in another. What `nn.DenseGeneral` does is written out for that.
    """

    num_heads: int
    dtype: Any
    init_std: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"], select: Select | None, *, flat: bool
    ) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """Arrays [B, n, parts, heads, d], and the bias in each.

        `flat`: [B, n, parts * heads * d] and [parts * heads * d]; the arrays give the bias no
        gradient, see `pallas_attention.attend`.
        """
        dim = x.shape[-1]
        shape = (3, self.num_heads, dim // self.num_heads)
        kernel = self.param("kernel", nn.initializers.normal(self.init_std), (dim, *shape))
        bias = self.param("bias", nn.initializers.zeros, shape)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)

        def project(x: Array, parts: slice) -> Array:
            if flat:
                y = x @ kernel[:, parts].reshape(dim, -1)
                return shard(y + jax.lax.stop_gradient(bias[parts]).reshape(1, 1, -1))
            y = jnp.einsum("bnd,dphk->bnphk", x, kernel[:, parts]) + bias[None, None, parts]
            return shard(y, None, None, "tensor")

        wanted = [(x, slice(3))]
        if select is not None:
            wanted = [(select(x), slice(1)), (x, slice(1, 3))]
        biases = tuple(bias[parts].reshape(-1) if flat else bias[parts] for _, parts in wanted)
        return tuple(project(*one) for one in wanted), biases


class Attention(nn.Module):
    """Multi-head attention of the selected tokens to all tokens; no mask exists anywhere."""

    num_heads: int
    dtype: Any
    init_std: float
    attention: Implementation

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"], select: Select | None) -> Float[Array, "B Q D"]:
        project = QKV(self.num_heads, self.dtype, self.init_std, name="qkv")
        if self.attention == "pallas" and pallas_attention.runs_here(x):
            y = pallas_attention.attend(*project(x, select, flat=True), self.num_heads)
        else:
            arrays, _ = project(x, select, flat=False)
            parts = [y[:, :, i] for y in arrays for i in range(y.shape[2])]
            y = jax.nn.dot_product_attention(  # softmax in float32
                *parts, implementation="cudnn" if self.attention == "cudnn" else "xla"
            )
        y = checkpoint_name(y, "attention").reshape(*y.shape[:2], self.num_heads, -1)
        return nn.DenseGeneral(
            x.shape[-1],
            axis=(-2, -1),
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(self.init_std),
            name="proj",
        )(y)  # [B, Q, D]


class Mlp(nn.Module):
    """Two dense layers with the exact (erf) GELU between them."""

    hidden_dim: int
    dtype: Any
    init_std: float

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        dim, kernel_init = x.shape[-1], nn.initializers.normal(self.init_std)
        x = nn.Dense(self.hidden_dim, dtype=self.dtype, kernel_init=kernel_init, name="fc1")(x)
        x = gelu(shard(x, None, "tensor"))
        return nn.Dense(dim, dtype=self.dtype, kernel_init=kernel_init, name="fc2")(x)


class Block(nn.Module):
    """One pre-norm block, with stochastic depth (Huang et al., 2016) on both branches."""

    num_heads: int
    mlp_ratio: float
    dtype: Any
    init_std: float
    stochastic: bool  # draw which branches to drop; needs the random stream "drop_path"
    attention: Implementation = "xla"
    layer_norm_eps: float = LAYER_NORM_EPS

    def drop_path(
        self, branch: Float[Array, "B N D"], rate: Float[Array, ""]
    ) -> Float[Array, "B N D"]:
        if not self.stochastic:
            return branch
        keep = jax.random.bernoulli(self.make_rng("drop_path"), 1.0 - rate, (len(branch), 1, 1))
        return jnp.where(keep, branch / (1.0 - rate), 0.0).astype(branch.dtype)

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"], rate: Float[Array, ""], select: Select | None = None
    ) -> Float[Array, "B Q D"]:
        """The block's output of the selected tokens, which attend to all; of all tokens if None."""
        dim, x = x.shape[-1], shard(x)
        y = layer_norm(self.dtype, self.layer_norm_eps, "norm1")(x)
        attention = Attention(
            self.num_heads, self.dtype, self.init_std, self.attention, name="attention"
        )
        y = attention(y, select)
        x = (x if select is None else shard(select(x))) + self.drop_path(y, rate)
        y = layer_norm(self.dtype, self.layer_norm_eps, "norm2")(x)
        y = Mlp(int(dim * self.mlp_ratio), self.dtype, self.init_std, name="mlp")(y)
        return x + self.drop_path(y, rate)


class Transformer(nn.Module):
    """`depth` blocks and a final LayerNorm.

    The parameters of all blocks are stacked along a first axis of length `depth`, whether the
    blocks run as a compiled loop (`scan_layers`) or unrolled: the numbers and the checkpoints are
    the same, and only compile time and fusion differ.

    `dtype` is that of the matrix products. What runs past the branches, and is added to by them,
    stays float32, as in the reference's mixed precision: in bfloat16 small branches would be
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
    attention: Implementation = "xla"  # or "cudnn"; see `choose_attention`
    layer_norm_eps: float = LAYER_NORM_EPS

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N D"],
        *,
        deterministic: bool = True,
        select: Select | None = None,
        layers: tuple[int, ...] | None = None,
        final_norm: bool = True,
    ) -> Float[Array, "B Q D"] | Float[Array, "L B N D"]:
        """Transformed tokens.

        Args:
          deterministic: no stochastic depth; otherwise the stream "drop_path" is needed.
          select: [B, N, D] -> [B, Q, D], the tokens whose output is wanted (all if None). The last
            block computes no other: it only lets them attend to the rest.
          layers: the blocks whose outputs are wanted, ascending, counted from 0; each then passes
            through the final LayerNorm, and they come stacked. Without `select`.
          final_norm: whether the outputs of `layers` do pass through it.
        """
        stochastic = self.drop_path_rate > 0 and not deterministic
        block = Block(
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            dtype=self.dtype,
            init_std=self.init_std,
            stochastic=stochastic,
            attention=self.attention,
            layer_norm_eps=self.layer_norm_eps,
            parent=None,
        )

        def init(key: Array) -> dict[str, Any]:
            keys = {"params": key, "drop_path": key}
            return block.init(keys, x[:1], jnp.zeros([]))["params"]

        params = self.param(
            "blocks", lambda key: jax.vmap(init)(jax.random.split(key, self.depth))
        )  # each array [depth, ...]
        rates = jnp.linspace(0.0, self.drop_path_rate, self.depth)
        keys = jax.random.split(self.make_rng("drop_path"), self.depth) if stochastic else None

        def run(x: Array, layer: Any, select: Select | None) -> Array:
            params, rate, key = layer
            rngs = {"drop_path": key} if stochastic else None
            y: Any = block.apply({"params": params}, x, rate, select, rngs=rngs)
            return y

        def recompute(in_loop: bool) -> Callable[..., Array]:
            if self.remat == "none":
                return run
            # Inside a loop XLA can't merge the recomputation with the first computation anyway.
            policy = _REMAT_POLICIES[self.remat]
            return jax.checkpoint(run, policy=policy, prevent_cse=not in_loop, static_argnums=2)

        stack = (params, rates, keys)
        run_looped = recompute(in_loop=self.scan_layers)

        def loop(x: Array, first: int, end: int) -> Array:
            """Blocks `first` to `end - 1`."""
            x, _ = jax.lax.scan(
                lambda x, layer: (run_looped(x, layer, None), None),
                x,
                jax.tree.map(lambda leaf: leaf[first:end], stack),
                unroll=1 if self.scan_layers else max(end - first, 1),
            )
            return x

        norm = layer_norm(jnp.float32, self.layer_norm_eps, "norm")
        if layers is not None:
            outputs = []
            for first, end in itertools.pairwise([0, *(layer + 1 for layer in layers)]):
                x = loop(x, first, end)
                outputs.append(norm(shard(x)) if final_norm else x)
            return jnp.stack(outputs)
        x = loop(x, 0, self.depth if select is None else self.depth - 1)
        if select is not None:
            x = recompute(in_loop=False)(x, jax.tree.map(lambda leaf: leaf[-1], stack), select)
        return norm(shard(x))


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
