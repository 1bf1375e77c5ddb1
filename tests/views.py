"""Objectives that compare views, made small, and what their tests share."""

import jax
import jax.numpy as jnp
import numpy as np
from conftest import load_config_file, randomized
from numpy_model import as_float64

from jepa_jax.config import resolve
from jepa_jax.models.vision_transformer import make_encoder
from jepa_jax.objectives.objective import Clock
from jepa_jax.objectives.registry import make_objective

B, E, K = 6, 5, 4
KEY = jax.random.key(0)
SMALL_CROPS = {"num_local": 2, "local_size": (14, 14)}


def small_config(name, **objective):
    config = load_config_file(f"fashion_mnist_{name}")
    config.batch_size = B
    config.model.update({"patch_size": 7, "embed_dim": 16, "depth": 1, "num_heads": 2})
    config.objective.update({"hidden_dim": 8, "output_dim": E, **objective})
    return resolve(config)


def random_views(**shapes):
    """Batches of normalised pixels; name -> the shape after the examples."""
    rng = np.random.default_rng(0)
    return {
        name: jnp.asarray(rng.normal(size=(B, *shape, 3)), jnp.float32)
        for name, shape in shapes.items()
    }


class Evaluated:
    """Loss, gradient and what else comes out, at random parameters; and by hand what it is of.

    Attributes:
      params, other: parameters, and others like them for a moving average.
    """

    def __init__(self, config, batch, state_of=lambda other: (), clock=Clock(3, 10.0)):  # noqa: B008
        self.config, self.batch = config, batch
        objective = make_objective(config)
        self.params, self.other = randomized(objective, 1), randomized(objective, 2)
        self.state = state_of(self.other)

        def loss(params, state, batch):
            return objective.loss(params, state, batch, KEY, clock)

        both = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (self.value, self.out), self.gradient = both(self.params, self.state, batch)

    def features(self, weights, images, index=None):
        """Mean of the patch tokens, float64 [B, D]: of all, or of those that are seen."""
        tokens = make_encoder(self.config).apply({"params": weights}, images, index)
        return np.asarray(tokens, np.float64).mean(axis=1)

    def check(self, by_hand, *, path):
        """Compares value and gradient with a float64 function of the parameters alone.

        Args:
          by_hand: parameters -> the loss. Whatever must receive no gradient is held fixed in it.
          path: of a parameter, at whose entries of largest and of median gradient finite
            differences are taken.
        """
        params = as_float64(self.params)
        expected = by_hand(params)
        np.testing.assert_allclose(self.value, expected, rtol=1e-4)
        leaf, gradient = params, self.gradient
        for name in path:
            leaf, gradient = leaf[name], gradient[name]
        size = np.abs(gradient)
        order = np.argsort(size, axis=None)[size.size - np.count_nonzero(size) :]
        for place in (order[-1], order[len(order) // 2]):
            entry = np.unravel_index(place, size.shape)
            before, step = leaf[entry], 1e-5
            leaf[entry] = before + step
            above = by_hand(params)
            leaf[entry] = before - step
            slope = (above - by_hand(params)) / (2 * step)
            leaf[entry] = before
            assert abs(slope) > 1e-6
            np.testing.assert_allclose(gradient[entry], slope, rtol=2e-3, atol=1e-6)
