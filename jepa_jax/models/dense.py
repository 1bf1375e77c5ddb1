"""The one matrix product of the models: tokens times a kernel."""

from typing import Any

import jax
from flax import linen as nn
from jaxtyping import Array


@jax.custom_vjp
def multiply(x: Array, kernel: Array) -> Array:
    """Tokens [B, N, *inputs] times a kernel [*inputs, *outputs]: [B, N, *outputs].

    Its reverse rule says in which order the axes of the kernel's gradient come to be. Left to
    JAX, the gradient is made transposed and turned back, and XLA's CPU compiler then copies its
    operands and leaves its fast product: a block's backward pass takes a quarter longer (see
    benchmarks/NOTES.md). There is no forward-mode rule: `jax.jvp` of `jax.grad` works, `jax.jvp`
    alone does not.
    """
    inputs = range(2, x.ndim)
    return jax.lax.dot_general(x, kernel, ((inputs, range(len(inputs))), ((), ())))


def _multiply_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return multiply(x, kernel), (x, kernel)


def _multiply_backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = kept
    outputs, num_inputs = range(2, gradient.ndim), x.ndim - 2
    of_x = jax.lax.dot_general(
        gradient, kernel, ((outputs, range(num_inputs, kernel.ndim)), ((), ()))
    )  # [B, N, *inputs]
    x, gradient = (y.reshape(-1, *y.shape[2:]) for y in (x, gradient))  # [B * N, ...]
    of_kernel = jax.lax.dot_general(x, gradient, (((0,), (0,)), ((), ())))  # [*inputs, *outputs]
    return of_x, of_kernel


multiply.defvjp(_multiply_forward, _multiply_backward)


class Dense(nn.Module):
    """A dense layer over the axes behind the second: [B, N, *inputs] -> [B, N, *outputs]."""

    outputs: tuple[int, ...]
    dtype: Any
    init_std: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param(
            "kernel", nn.initializers.normal(self.init_std), (*x.shape[2:], *self.outputs)
        )
        bias = self.param("bias", nn.initializers.zeros, self.outputs)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return multiply(x, kernel) + bias
