"""k nearest neighbours, block by block on the device: neither side need fit there."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jepa_jax.evaluation.rows import Rows, moments
from jepa_jax.evaluation.tasks import Task

Metric = Literal["cosine", "euclidean"]
Weighting = Literal["majority", "weighted"]

_QUERIES, _REFERENCES = 1024, 16_384  # rows of a block: 64 MiB of similarities


def nearest(
    references: Rows,
    queries: Rows,
    *,
    k: int,
    metric: Metric,
    standardize: bool,
) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
    """The k references nearest to each query, nearest first; of equally near ones the first.

    Memory beyond the queries: a block of either side, their similarities, and the best so far.

    Args:
      metric: cosine, or Euclidean distance.
      standardize: columns to the references' mean 0 and standard deviation 1, first.

    Returns:
      similarity: cosines, or minus half the squared distances up to a term of the query's own.
      index: numbers of references, int32.
    """
    width = references.shape[1]
    columns = moments(references) if standardize else (np.zeros(width), np.ones(width))
    mean, std = (jnp.asarray(column, jnp.float32) for column in columns)
    asked = [
        _prepare(jnp.asarray(_padded(block, min(_QUERIES, len(queries)))), mean, std, metric)
        for block in queries.blocks(_QUERIES)
    ]  # the queries stay; the references, of which there are more, are read once
    size = min(_REFERENCES, len(references))
    best = [(jnp.full((len(q), k), -jnp.inf), jnp.full((len(q), k), -1, jnp.int32)) for q in asked]
    for number, block in enumerate(references.blocks(size)):
        known = _prepare(jnp.asarray(_padded(block, size)), mean, std, metric)
        for i, q in enumerate(asked):
            best[i] = _merge(*best[i], q, known, number * size, len(block), metric=metric)
    similarity, index = (
        np.concatenate([np.asarray(one[part]) for one in best])[: len(queries)] for part in (0, 1)
    )
    return similarity, index


def _padded(block: np.ndarray, size: int) -> np.ndarray:
    return np.pad(block, [(0, size - len(block)), (0, 0)])


@functools.partial(jax.jit, static_argnames="metric")
def _prepare(rows: Array, mean: Array, std: Array, metric: Metric) -> Array:
    rows = (rows - mean[None]) / std[None]
    if metric == "euclidean":
        return rows
    return rows / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


@functools.partial(jax.jit, static_argnames="metric")
def _merge(
    similarity: Float[Array, "q k"],
    index: Int[Array, "q k"],
    queries: Float[Array, "q D"],
    references: Float[Array, "r D"],
    first: int | Array,
    count: int | Array,
    *,
    metric: Metric,
) -> tuple[Array, Array]:
    """The best k of those so far and of a block, whose first `count` rows are real."""
    found = jnp.matmul(queries, references.T, precision="highest")  # [q, r]
    if metric == "euclidean":
        found = found - 0.5 * jnp.sum(jnp.square(references), axis=1)[None]
    numbers = jnp.arange(references.shape[0], dtype=jnp.int32)
    found = jnp.where(numbers[None] < count, found, -jnp.inf)
    k = similarity.shape[1]
    values, at = jax.lax.top_k(found, min(k, found.shape[1]))
    values = jnp.concatenate([similarity, values], axis=1)
    numbers = jnp.concatenate([index, at.astype(jnp.int32) + first], axis=1)
    values, at = jax.lax.top_k(values, k)  # stable: the earlier of equals stays ahead
    return values, jnp.take_along_axis(numbers, at, axis=1)


def vote(
    task: Task,
    similarity: Float[np.ndarray, "n k"],
    neighbours: np.ndarray,
    *,
    k: int,
    weighting: Weighting,
    temperature: float,
) -> np.ndarray:
    """What the k nearest say: float32 [n, outputs], shares of the votes or a mean of numbers.

    Args:
      neighbours: labels of the neighbours, [n, k'] or [n, k', outputs], nearest first.
      weighting: majority: each counts the same; weighted: as exp(similarity / temperature), as in
        Wu et al., 2018, section 3.4.
    """
    n = len(similarity)
    weights = np.ones((n, k))
    if weighting == "weighted":
        weights = np.exp((similarity[:, :k] - similarity[:, :1]).astype(np.float64) / temperature)
    weights /= weights.sum(axis=1, keepdims=True)
    if task.kind != "classification":
        return np.einsum("nk,nko->no", weights, neighbours[:, :k]).astype(np.float32)
    shares = np.zeros((n, task.outputs), np.float32)
    np.add.at(shares, (np.arange(n)[:, None], neighbours[:, :k]), weights)
    return shares


def predict(
    task: Task,
    references: Rows,
    labels: np.ndarray,
    queries: Rows,
    *,
    ways: list[tuple[Weighting, int]],
    metric: Metric,
    standardize: bool,
    temperature: float,
) -> dict[tuple[Weighting, int], np.ndarray]:
    """`vote` of the nearest references in several ways, (weighting, k), with one search."""
    most = max(k for _, k in ways)
    similarity, index = nearest(references, queries, k=most, metric=metric, standardize=standardize)
    neighbours: Any = labels[index]
    return {
        (weighting, k): vote(
            task, similarity, neighbours, k=k, weighting=weighting, temperature=temperature
        )
        for weighting, k in ways
    }
