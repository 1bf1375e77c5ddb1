"""The layers of a block, by themselves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from jepa_jax.models.transformer import LAYER_NORM_EPS, gelu, layer_norm


def norm_by_hand(x, scale, bias, d_y):
    """LayerNorm and the gradient of its input, in float64."""
    x, scale, bias, d_y = (np.asarray(a, np.float64) for a in (x, scale, bias, d_y))
    deviation = np.sqrt(x.var(axis=-1, keepdims=True) + LAYER_NORM_EPS)
    y = (x - x.mean(axis=-1, keepdims=True)) / deviation
    d = d_y * scale
    d_x = d - d.mean(axis=-1, keepdims=True) - y * (d * y).mean(axis=-1, keepdims=True)
    return y * scale + bias, d_x / deviation


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("offset", [0.0, 1.0, 30.0])  # of the mean, in standard deviations
def test_layer_norm_is_as_exact_as_its_output(dtype, offset):
    rng = np.random.default_rng(0)
    draw = functools.partial(rng.normal, size=(4, 50, 192))
    x = jnp.asarray(3 * (draw() + offset), jnp.float32)
    params = {"scale": jnp.asarray(draw()[0, 0]), "bias": jnp.asarray(draw()[0, 1])}
    d_y = jnp.asarray(draw(), dtype)
    layer = layer_norm(dtype, LAYER_NORM_EPS, "norm")

    @jax.jit
    def run(x, d_y):
        y, backward = jax.vjp(lambda x: layer.apply({"params": params}, x), x)
        return y, *backward(d_y)

    y, d_x = run(x, d_y)
    assert (y.dtype, d_x.dtype) == (dtype, jnp.float32)
    expected, d_expected = norm_by_hand(x, params["scale"], params["bias"], d_y)
    if dtype == jnp.float32:
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6 * (4 + offset))
        np.testing.assert_allclose(d_x, d_expected, rtol=0, atol=1e-6 * (2 + offset))
    else:
        half_a_step = np.float64(jnp.finfo(dtype).eps) / 2
        y = y.astype(jnp.float32)
        np.testing.assert_allclose(y, expected, rtol=1.02 * half_a_step, atol=1e-3)
        np.testing.assert_allclose(d_x, d_expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("dtype", "error"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-8)])
def test_gelu_and_its_slope_are_those_of_float64(dtype, error):
    given = jnp.asarray([*np.linspace(-12, 12, 4001), -1e15, 1e15], dtype)
    value, slope = jax.jvp(gelu, (given,), (jnp.ones_like(given),))
    assert value.dtype == slope.dtype == dtype
    x = np.asarray(given, np.float64)
    cdf, density = norm.cdf(x), norm.pdf(x)
    np.testing.assert_allclose(np.float64(value), x * cdf, rtol=error, atol=error)
    np.testing.assert_allclose(np.float64(slope), cdf + x * density, rtol=error, atol=error)


def test_gelu_keeps_one_array_for_the_backward_pass():
    _, backward = jax.vjp(gelu, jnp.ones((5, 7)))
    kept = [leaf for leaf in jax.tree.leaves(backward) if leaf.shape == (5, 7)]
    assert len(kept) == 1
