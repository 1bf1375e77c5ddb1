"""Logistic and ridge regression by L-BFGS, over features that need not fit in memory.

SciPy's L-BFGS-B asks for the loss and its gradient, which JAX sums up block by block: any number of
images costs the memory of one block. The objective is that of scikit-learn's LogisticRegression.
"""

import functools
import logging
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array

from jepa_jax.evaluation.rows import Rows, moments
from jepa_jax.evaluation.tasks import Task, mean_loss, on_device

log = logging.getLogger(__name__)

_BLOCK_BYTES = 64 << 20
_HELD_BYTES = 1 << 30  # features up to here are put on the device once
_TOLERANCE = 1e-3  # largest entry of the gradient at the end, as scikit-learn's tol
_MAX_ITERATIONS = 1000


class Linear(NamedTuple):
    """A linear head on standardised features.

    Attributes:
      kernel: [D, K]; bias: [K]; mean, std: of the features [D].
    """

    kernel: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    def __call__(self, rows: Rows) -> np.ndarray:
        """Outputs float32 [n, K]: logits, or numbers."""
        return np.concatenate(
            [(part - self.mean) / self.std @ self.kernel + self.bias for part in _split(rows)]
        ).astype(np.float32)


def fit(
    task: Task,
    rows: Rows,
    labels: np.ndarray,
    *,
    strength: float,
    standardized: bool = False,
    start: Linear | None = None,
) -> Linear:
    """Minimises mean loss + |kernel|^2 / (2 C n), for C = `strength`; the bias is free.

    Args:
      rows: features [n, D], which are standardised by their own mean and deviation.
      labels: of the task, [n] or [n, K]; numbers are centred and scaled for the fit.
      strength: C; the larger, the weaker the L2 term.
      standardized: the features are so already, and are left as they are.
      start: to start from, of the same features; None: from zero.
    """
    n, width = rows.shape
    mean, std = (np.zeros(width), np.ones(width)) if standardized else moments(rows)
    mean, std = mean.astype(np.float32), std.astype(np.float32)
    offset, scale = np.zeros(task.outputs), np.ones(task.outputs)
    if task.kind == "regression":
        offset, scale = labels.mean(axis=0), np.maximum(labels.std(axis=0), 1e-12)
        labels = (labels - offset) / scale
    labels = on_device(labels)
    shape = (width + 1, task.outputs)  # the bias is the last row
    read = functools.partial(_batches, rows, labels, mean, std)
    held = list(read()) if 4 * n * width <= _HELD_BYTES else None

    def value_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(shape)
        on = jnp.asarray(weights, jnp.float32)
        loss, gradient = 0.0, np.zeros(shape)
        for block, of_block, real in held if held is not None else read():
            part, d = _block_loss(task, on, block, of_block, real)
            loss, gradient = loss + float(part), gradient + np.asarray(d, np.float64)
        kernel = weights[:-1]
        gradient /= n
        gradient[:-1] += kernel / (strength * n)
        return loss / n + 0.5 * np.sum(kernel**2) / (strength * n), gradient.ravel()

    first = np.zeros(shape)
    if start is not None:
        first = np.concatenate([start.kernel, start.bias[None]]) / scale[None]
        first[-1] -= offset / scale
    done = scipy.optimize.minimize(
        value_and_gradient,
        first.ravel(),
        method="L-BFGS-B",
        jac=True,
        options={
            "maxiter": _MAX_ITERATIONS,
            "maxls": 50,
            "gtol": _TOLERANCE,
            "ftol": 64 * np.finfo(float).eps,
        },
    )
    if done.nit >= _MAX_ITERATIONS:
        log.warning("linear probe, C = %g: not converged in %d iterations", strength, done.nit)
    weights = done.x.reshape(shape) * scale[None]
    return Linear(
        weights[:-1].astype(np.float32), (weights[-1] + offset).astype(np.float32), mean, std
    )


@functools.partial(jax.jit, static_argnums=0)
def _block_loss(
    task: Task, weights: Array, block: Array, labels: Array, real: Array
) -> tuple[Array, Array]:
    """Loss summed over the rows with `real` 1, and its gradient."""

    def loss(weights: Array) -> Array:
        kernel, bias = weights[:-1], weights[-1]
        outputs = jnp.matmul(block, kernel, precision="highest") + bias[None]
        return mean_loss(task, outputs, labels, real) * jnp.maximum(jnp.sum(real), 1.0)

    return jax.value_and_grad(loss)(weights)


def _split(rows: Rows) -> Iterator[np.ndarray]:
    return rows.blocks(_size(rows))


def _size(rows: Rows) -> int:
    return max(min(_BLOCK_BYTES // (4 * rows.shape[1]), len(rows)), 1)


def _batches(
    rows: Rows, labels: np.ndarray, mean: np.ndarray, std: np.ndarray
) -> Iterator[tuple[Array, Array, Array]]:
    """Blocks of one shape, on the device: standardised features, labels, 1 for each real row."""
    size, start = _size(rows), 0
    for block in _split(rows):
        n = len(block)
        fill = size - n
        of_block = labels[start : start + n]
        start += n
        yield (
            jnp.asarray(np.pad((block - mean) / std, [(0, fill), (0, 0)])),
            jnp.asarray(np.pad(of_block, [(0, fill), *[(0, 0)] * (labels.ndim - 1)])),
            jnp.asarray(np.pad(np.ones(n, np.float32), (0, fill))),
        )
