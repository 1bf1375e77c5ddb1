"""Softmax attention over a few hundred tokens as one TPU kernel: the scores never leave the chip.

An example's queries, keys and values lie side by side, [N, 3 * heads * d], as one product leaves
them. A TPU works on 128 lanes, and heads have 32, 64 or 80: instead of cutting a head out, which
moves data between lanes, the other heads' lanes are set to zero in one factor of each product. The
matrix unit takes as long for 128 lanes as for 32.

The backward pass computes the scores again from queries and keys (as Dao et al., 2022, do), so that
nothing of size N x N is kept.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from jepa_jax.models.layout import BATCH_AXES

LANES = 128
# Of a chip's vector memory, which is 16 MiB where it is smallest (v4).
ROOM = 14 * 2**20

Arrays = tuple[Float[Array, "B _ _"], ...]
Biases = tuple[Float[Array, " _"], ...]


def runs_here(x: Float[Array, "B N D"]) -> bool:
    """Whether the kernel is for these tokens, which attend to each other, in what is traced now.

    XLA can't divide a kernel among chips by itself. So it is for what is traced with a mesh, as a
    training step is, not for one example, of which parameters are made.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and obstacle(mesh.shape, x.shape, x.dtype) is None


def obstacle(mesh: Mapping[str, int], shape: tuple[int, ...], dtype: Any) -> str | None:
    """Why the kernel can't be for tokens of this shape, [B, N, D], on such a mesh; None if it can.

    The mesh's axes over examples must divide the batch, without tensor parallelism; and an example
    must have room on the chip.
    """
    batch, tokens, dim = shape
    if mesh["tensor"] > 1:
        return f"config.mesh.tensor = {mesh['tensor']}"
    if batch % math.prod(mesh[axis] for axis in BATCH_AXES):
        return f"{batch} examples can't be divided among the chips"
    # In the backward pass q, k, v, their gradients and the output's; each while the next example's
    # comes and the last one's goes. Scores in float32.
    if 2 * 7 * tokens * dim * jnp.dtype(dtype).itemsize + 4 * tokens**2 * 4 > ROOM:
        return f"{tokens} tokens of width {dim} have no room on a chip"
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def attend(qkv: Arrays, biases: Biases, heads: int) -> Float[Array, "B T D"]:
    """softmax(query key^T / sqrt(d)) value of each head, the softmax in float32.

    With a mesh, each chip to its own examples. On anything but a TPU the kernel is interpreted,
    which is slow: for tests.

    Args:
      qkv: one array [B, N, 3 * heads * d] of queries, keys and values; or queries
        [B, T, heads * d], and keys and values [B, S, 2 * heads * d].
      biases: what has been added to each of these, for all tokens alike. Their gradients are the
        sums of those of `qkv`, which the kernel has at hand: so they are given here, and `qkv` must
        be made of them without a gradient (`jax.lax.stop_gradient`).
    """
    del biases
    out = jax.ShapeDtypeStruct((*qkv[0].shape[:2], _width(qkv)), qkv[0].dtype)
    return _run("attention_forward", _forward, heads, qkv, (out,))[0]


def _attend_fwd(qkv: Arrays, biases: Biases, heads: int) -> tuple[Array, tuple[Arrays, Biases]]:
    return attend(qkv, biases, heads), (qkv, biases)


def _attend_bwd(heads: int, kept: tuple[Arrays, Biases], d_out: Array) -> tuple[Arrays, Biases]:
    qkv, biases = kept
    sums = [jax.ShapeDtypeStruct((len(x), 1, x.shape[2]), jnp.float32) for x in qkv]
    made = _run("attention_backward", _backward, heads, (*qkv, d_out), (*qkv, *sums))
    d_biases = (  # [B, 1, D] -> [D]
        jnp.sum(x, axis=(0, 1)).astype(bias.dtype)
        for x, bias in zip(made[len(qkv) :], biases, strict=True)
    )
    return made[: len(qkv)], tuple(d_biases)


attend.defvjp(_attend_fwd, _attend_bwd)


def _width(qkv: Sequence[Any]) -> int:
    """heads * d."""
    return sum(x.shape[-1] for x in qkv) // 3


def _run(name: str, kernel: Any, heads: int, inputs: Arrays, outputs: Sequence[Any]) -> Arrays:
    """`kernel` for one example after the other, whose arrays lie in the chip's fast memory.

    `outputs` have the shapes and types of what it gives, for all examples.
    """

    def block(x: Any) -> pl.BlockSpec:
        return pl.BlockSpec((None, *x.shape[1:]), lambda example: (example, 0, 0))

    def call(*inputs: Array, interpret: bool) -> Arrays:
        examples = len(inputs[0])  # of this chip
        made = pl.pallas_call(
            functools.partial(kernel, heads),
            grid=(examples,),
            in_specs=[block(x) for x in inputs],
            out_specs=[block(x) for x in outputs],
            out_shape=[jax.ShapeDtypeStruct((examples, *x.shape[1:]), x.dtype) for x in outputs],
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
            interpret=interpret,
            name=f"{name}_{heads}_heads",
        )(*inputs)
        return tuple(made)

    def run(*inputs: Array) -> Arrays:
        made: Arrays = jax.lax.platform_dependent(
            *inputs,
            tpu=functools.partial(call, interpret=False),
            default=functools.partial(call, interpret=True),
        )
        return made

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return run(*inputs)
    spec = PartitionSpec(BATCH_AXES)
    return jax.shard_map(run, in_specs=spec, out_specs=spec, check_vma=False)(*inputs)


def _forward(heads: int, *refs: Any) -> None:
    *qkv, out_ref = refs
    width = _width(qkv)
    scale = (width // heads) ** -0.5
    query, key, value = _parts(qkv)
    out = _Lanes(out_ref, 0)
    for window, only in _heads(width, heads):
        q, k, v = (part.load(window) for part in (query, key, value))
        p, inverse = _softmax(_dot(only(q), k, 1, 1) * scale, axis=1)  # [T, S], [T, 1]
        out.add(window, only(_dot(p.astype(v.dtype), v, 1, 0)) * inverse)
    out.store()


def _backward(heads: int, *refs: Any) -> None:
    number = len(refs) // 3  # of arrays that hold queries, keys and values
    qkv, d_out_ref, made = refs[:number], refs[number], refs[number + 1 :]
    d_qkv, sums = made[:number], made[number:]
    width = _width(qkv)
    scale = (width // heads) ** -0.5
    query, key, value = _parts(qkv)
    d_query, d_key, d_value = _parts(d_qkv)
    d_output = _Lanes(d_out_ref, 0)
    for window, only in _heads(width, heads):
        q, k, v, d_out = (part.load(window) for part in (query, key, value, d_output))
        q, d_out = only(q), only(d_out)
        # Keys by queries: sums over keys go along columns, and one product alone is transposed.
        p, inverse = _softmax(_dot(k, q, 1, 1) * scale, axis=0)
        p = p * inverse  # [S, T]
        d_value.add(window, _dot(p.astype(v.dtype), d_out, 1, 0))
        d_p = _dot(v, d_out, 1, 1)
        d_s = (p * (d_p - (p * d_p).sum(axis=0, keepdims=True)) * scale).astype(q.dtype)
        d_key.add(window, _dot(d_s, q, 1, 0))
        d_query.add(window, only(_dot(d_s, k, 0, 0)))
    totals = [total for total in sums for _ in range(total.shape[-1] // width)]  # of each part
    for part, total in zip((d_query, d_key, d_value), totals, strict=True):
        part.store(total)


def _softmax(scores: Array, axis: int) -> tuple[Array, Array]:
    """exp, and the inverse of its sum over the keys."""
    p = jnp.exp(scores - scores.max(axis=axis, keepdims=True))
    return p, 1.0 / p.sum(axis=axis, keepdims=True)


def _dot(a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
    dims = (((a_axis,), (b_axis,)), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _heads(width: int, heads: int) -> Iterator[tuple[slice, Callable[[Array], Array]]]:
    """Of each head the registers' lanes that it lies in, and what sets the others of them to 0."""
    dim = width // heads
    for head in range(heads):
        first, end = head * dim, (head + 1) * dim
        start, stop = first // LANES * LANES, min(-(-end // LANES) * LANES, width)

        def only(x: Array, first: int = first - start, end: int = end - start) -> Array:
            if (first, end) == (0, x.shape[1]):
                return x
            lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
            return jnp.where((lane >= first) & (lane < end), x, jnp.zeros_like(x))

        yield slice(start, stop), only


class _Lanes:
    """The queries, keys, values, output or gradients of all heads, in one array from a lane on."""

    def __init__(self, ref: Any, first: int) -> None:
        self.ref, self.first = ref, first
        self.sums: dict[int, Array] = {}

    def load(self, window: slice) -> Array:
        loaded: Array = self.ref[:, self.first + window.start : self.first + window.stop]
        return loaded

    def add(self, window: slice, x: Array) -> None:
        """What a head gives; others share its lanes."""
        for start in range(window.start, window.stop, LANES):
            part = x[:, start - window.start : start - window.start + LANES]
            self.sums[start] = self.sums[start] + part if start in self.sums else part

    def store(self, total_ref: Any = None) -> None:
        """All that was added; and its sum over the tokens, [1, ...], in another array."""
        for start, x in self.sums.items():
            lanes = slice(self.first + start, self.first + start + x.shape[1])
            self.ref[:, lanes] = x.astype(self.ref.dtype)
            if total_ref is not None:
                total_ref[:, lanes] = x.sum(axis=0, keepdims=True)


def _parts(refs: Sequence[Any]) -> list[_Lanes]:
    """Queries, keys and values."""
    width = _width(refs)
    return [_Lanes(ref, first) for ref in refs for first in range(0, ref.shape[-1], width)]
