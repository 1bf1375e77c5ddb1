"""`benchmarks.gradient_sums`: its step is a training step, its narrow sums are bfloat16."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from conftest import ijepa_loss, stream_of

from benchmarks.gradient_sums import difference, make_step
from jepa_jax.config import resolve
from jepa_jax.data.sources import array_source
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training.setup import set_up


def test_shares_add_up_to_the_batch_s_gradient_and_rounded_ones_are_bfloat16(tiny, one_device):
    tiny.objective.masks.update({"target_scale": (0.25, 0.25), "target_aspect_ratio": (1.0, 1.0)})
    config = resolve(tiny)
    objective = make_objective(config)
    images = np.random.default_rng(0).integers(0, 256, (16, 28, 28, 1), np.uint8)
    source = array_source(images, None, (), (28, 28))
    batch = next(iter(stream_of(config, source).batches(0, 1, None)))
    batch = {name: batch[name] for name in ("image", "context_index", "target_index")}
    setup = set_up(config, objective, steps_per_epoch=1, mesh=one_device, donate=False)
    start = setup.create()
    right = jax.jit(jax.grad(ijepa_loss(objective)))(
        start.params, start.objective_state.target, batch, jax.random.key(0)
    )
    after, _ = setup.step(start, batch)

    state, gradient = make_step(config, 1, 4, "float32")(start, batch)
    assert difference(gradient, right, right) < 1e-6
    chex.assert_trees_all_close(state.params, after.params, atol=1e-5)
    assert state.step == 1

    _, gradient = make_step(config, 1, 4, "bfloat16")(start, batch)
    assert 1e-3 < difference(gradient, right, right) < 1e-2
    leaves = jax.tree_util.tree_leaves_with_path(gradient)
    narrow = [bool((x == x.astype(jnp.bfloat16)).all()) for _, x in leaves]
    norms = ["norm" in jax.tree_util.keystr(path) for path, _ in leaves]
    assert narrow == [not norm for norm in norms]
