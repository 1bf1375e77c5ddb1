"""Heads on frozen features, and a grid of them that is trained at once.

All heads of a kind see the same features, so that they are one head with a leading axis: `vmap`
over parameters, learning rates and weight decays. One pass of the encoder serves the whole grid.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float

from jepa_jax.evaluation.tasks import Task, mean_loss
from jepa_jax.models.transformer import Block, Mlp, layer_norm

NORM_EPSILON = 1e-6  # of the batch norm without parameters, as in MAE's linear probe
_NORM_MOMENTUM = 0.9  # of its running statistics
_TRUST = 1e-3  # LARS: You et al., 2017, as MAE and VISSL set it
_MOMENTUM = 0.9
_INIT_STD = 0.01  # MAE's, of a linear probe


class LinearHead(nn.Module):
    """One dense layer on pooled features, [B, D] -> [B, K]."""

    outputs: int

    @nn.compact
    def __call__(self, x: Float[Array, "B D"]) -> Float[Array, "B K"]:
        init = nn.initializers.normal(_INIT_STD)
        return nn.Dense(self.outputs, kernel_init=init, name="classifier")(x)


class AttentiveHead(nn.Module):
    """A learned query that attends to the tokens, then one dense layer: [B, N, D] -> [B, K].

    A pre-norm cross-attention block (Bardes et al., 2024, V-JEPA, section 4.1), with
    self-attention blocks of the tokens ahead of it in the form of V-JEPA 2 (Assran et al., 2025:
    three).
    """

    outputs: int
    num_heads: int
    self_attention_blocks: int = 0

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B K"]:
        dim, std = x.shape[-1], 0.02
        for number in range(self.self_attention_blocks):
            block = Block(self.num_heads, 4.0, jnp.float32, std, False, name=f"block{number + 1}")
            x = block(x, jnp.float32(0))
        query = self.param("query", nn.initializers.normal(std), (dim,))
        query = jnp.broadcast_to(query, (len(x), 1, dim))
        keys = layer_norm(jnp.float32, 1e-6, "norm1")(x)
        heads = (self.num_heads, dim // self.num_heads)
        projected = [
            nn.DenseGeneral(heads, kernel_init=nn.initializers.normal(std), name=name)(given)
            for name, given in (("query_proj", query), ("key_proj", keys), ("value_proj", keys))
        ]  # [B, 1 or N, heads, d]
        attended = jax.nn.dot_product_attention(*projected)  # no projection after it, as published
        query = query + attended.reshape(query.shape)  # [B, 1, D]
        y = layer_norm(jnp.float32, 1e-6, "norm2")(query)
        query = query + Mlp(4 * dim, jnp.float32, std, name="mlp")(y)
        init = nn.initializers.normal(_INIT_STD)
        return nn.Dense(self.outputs, kernel_init=init, name="classifier")(query[:, 0])


class Kind(NamedTuple):
    """Heads of one shape: what they see.

    Attributes:
      features: name of the features.
      batch_norm: whether each column is standardised first, by the batch, and in the evaluation by
        running statistics; without learned parameters.
    """

    features: str
    batch_norm: bool


class Grid(NamedTuple):
    """All heads that are trained: each kind with each learning rate and weight decay.

    Attributes:
      lr, weight_decay: [H], of the heads of each kind.
      schedule: step -> factor of the learning rates.
    """

    head: nn.Module
    task: Task
    kinds: tuple[Kind, ...]
    lr: np.ndarray
    weight_decay: np.ndarray
    optimizer: Literal["lars", "adamw"]
    schedule: Callable[[Array], Array]


class HeadState(NamedTuple):
    """Of all heads; everything of a kind has a leading axis [H].

    Attributes:
      step: updates done.
      params, optimizer_state: kind -> tree.
      norm: kind -> (mean [D], variance [D]), running.
    """

    step: Array
    params: dict[str, Any]
    optimizer_state: dict[str, Any]
    norm: dict[str, tuple[Array, Array]]


def make_grid(
    head: nn.Module,
    task: Task,
    kinds: Sequence[Kind],
    *,
    lr: Sequence[float],
    weight_decay: Sequence[float],
    optimizer: Literal["lars", "adamw"],
    schedule: Callable[[Array], Array],
) -> Grid:
    """The product of learning rates and weight decays, for each kind."""
    pairs = np.array(list(itertools.product(lr, weight_decay)), np.float32)
    return Grid(head, task, tuple(kinds), pairs[:, 0], pairs[:, 1], optimizer, schedule)


def names(grid: Grid) -> list[str]:
    """A name of each head: kinds in order, and of each kind the H heads."""
    return [
        f"{kind.features}{', batch norm' if kind.batch_norm else ''}, lr {lr:g}, decay {decay:g}"
        for kind in grid.kinds
        for lr, decay in zip(grid.lr, grid.weight_decay, strict=True)
    ]


def make_optimizer(grid: Grid, lr: Any, weight_decay: Any) -> optax.GradientTransformation:
    """Of one head. LARS as MAE's: only kernels have weight decay, and a trust ratio.

    g = grad + decay w; g *= trust |w| / |g|; m = 0.9 m + g; w -= lr m (You et al., 2017).
    """

    def rate(step: Array) -> Array:
        return lr * grid.schedule(step)

    if grid.optimizer == "adamw":
        return optax.adamw(rate, weight_decay=weight_decay, mask=_kernels)
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=_kernels),
        optax.masked(optax.scale_by_trust_ratio(trust_coefficient=_TRUST), _kernels),
        optax.trace(_MOMENTUM),
        optax.scale_by_learning_rate(rate),
    )


def reach(grid: Grid, steps: int) -> float:
    """How far LARS can move a kernel in so many steps, in lengths of the kernel, at the most.

    The trust ratio makes a step a fixed share of the kernel's length, however wrong it is: with few
    steps, or rates for large batches, heads stay near where they start.
    """
    rates = grid.schedule(jnp.arange(steps)) * grid.lr.max()
    return float(jnp.sum(rates)) * _TRUST / (1 - _MOMENTUM)


def _kernels(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key not in ("bias", "scale"), params
    )


def initial(grid: Grid, features: dict[str, Any], seed: int) -> HeadState:
    """All heads before the first step; those of a kind start alike.

    Args:
      features: name -> shapes [B, D] or [B, N, D].
    """
    params, state, norm = {}, {}, {}
    count = len(grid.lr)
    for kind in grid.kinds:
        like = features[kind.features]
        key, dummy = jax.random.key(seed), jnp.zeros((1, *like.shape[1:]))
        one = grid.head.init(key, dummy)["params"]
        of_all = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), one)
        init = jax.vmap(lambda p, lr, decay: make_optimizer(grid, lr, decay).init(p))
        params[str(kind)] = of_all
        state[str(kind)] = init(of_all, grid.lr, grid.weight_decay)
        width = like.shape[-1]
        norm[str(kind)] = (jnp.zeros(width), jnp.ones(width))
    return HeadState(jnp.zeros([], jnp.int32), params, state, norm)


def make_step(
    grid: Grid,
) -> Callable[[HeadState, dict[str, Any], Any, Any], tuple[HeadState, Array]]:
    """Jitted (state, features, labels, weights) -> (next state, losses of all heads).

    features: name -> [B, D] or [B, N, D]; labels [B] or [B, K]; weights [B]: 1 for an example that
    counts.
    """

    def step(
        state: HeadState, features: dict[str, Array], labels: Array, weights: Array
    ) -> tuple[HeadState, Array]:
        params, optimizer_state, norm, losses = {}, {}, {}, []
        for kind in grid.kinds:
            name, x = str(kind), features[kind.features]
            norm[name] = state.norm[name]
            if kind.batch_norm:
                x, batch = _normalize_batch(x, weights)
                norm[name] = jax.tree.map(
                    lambda old, new: _NORM_MOMENTUM * old + (1 - _NORM_MOMENTUM) * new,
                    state.norm[name],
                    batch,
                )

            def update(p: Any, s: Any, lr: Any, decay: Any, x: Array = x) -> Any:
                def loss_of(p: Any) -> Array:
                    outputs: Any = grid.head.apply({"params": p}, x)
                    return mean_loss(grid.task, outputs, labels, weights)

                loss, gradient = jax.value_and_grad(loss_of)(p)
                updates, s = make_optimizer(grid, lr, decay).update(gradient, s, p)
                return optax.apply_updates(p, updates), s, loss

            params[name], optimizer_state[name], loss = jax.vmap(update)(
                state.params[name], state.optimizer_state[name], grid.lr, grid.weight_decay
            )
            losses.append(loss)
        return (
            HeadState(state.step + 1, params, optimizer_state, norm),
            jnp.concatenate(losses),
        )

    return jax.jit(step, donate_argnums=0)


def _normalize_batch(x: Array, weights: Array) -> tuple[Array, tuple[Array, Array]]:
    """Standardised by the examples of weight 1, and their mean and (unbiased) variance [D]."""
    count = jnp.maximum(jnp.sum(weights), 2.0)
    mean = jnp.sum(x * weights[:, None], axis=0) / count
    variance = jnp.sum(jnp.square(x - mean[None]) * weights[:, None], axis=0) / count
    unbiased = variance * count / (count - 1)
    return (x - mean[None]) / jnp.sqrt(variance + NORM_EPSILON)[None], (mean, unbiased)


def make_predict(grid: Grid) -> Callable[[HeadState, dict[str, Any]], Array]:
    """Jitted (state, features) -> outputs of all heads [heads, B, K]."""

    def predict(state: HeadState, features: dict[str, Array]) -> Array:
        outputs = []
        for kind in grid.kinds:
            x = features[kind.features]
            if kind.batch_norm:
                mean, variance = state.norm[str(kind)]
                x = (x - mean[None]) / jnp.sqrt(variance + NORM_EPSILON)[None]

            def apply(p: Any, x: Array = x) -> Any:
                return grid.head.apply({"params": p}, x)

            outputs.append(jax.vmap(apply)(state.params[str(kind)]))
        return jnp.concatenate(outputs)

    return jax.jit(predict)
