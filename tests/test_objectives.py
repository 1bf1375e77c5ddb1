"""What every objective must keep: one loss on any number of devices, exact resumption, its spec."""

import functools
import signal
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
import pytest
from conftest import load_config_file, stream_of

from jepa_jax.config import MeshConfig, resolve
from jepa_jax.data.sources import array_source
from jepa_jax.errors import PreemptedError, UserError
from jepa_jax.objectives.objective import at_path, initial_encoder
from jepa_jax.objectives.registry import OBJECTIVES, make_objective
from jepa_jax.planning.collectives import by_kind, collectives
from jepa_jax.training import checkpoint
from jepa_jax.training.loop import train
from jepa_jax.training.setup import set_up
from jepa_jax.training.sharding import batch_sharding, make_mesh

STEPS_PER_EPOCH, EPOCHS = 2, 2
HEAD = {"hidden_dim": 16, "output_dim": 8}
SMALL_CROPS = {"num_local": 2, "local_size": (14, 14)}
SMALL = {
    "ijepa": {
        "masks": {"context_tokens": 4, "num_targets": 2, "target_scale": (0.25, 0.25)},
        "predictor": {"embed_dim": 8, "depth": 1, "num_heads": 2},
    },
    "supervised": {},
    "mae": {"decoder": {"embed_dim": 8, "depth": 1, "num_heads": 2}},
    "vicreg": {"expander_dim": 24},
    "swav": {
        "num_prototypes": 12,
        "freeze_prototypes_steps": 1,
        "queue_length": 32,  # two batches: used from the third step on
        "queue_start_step": 0,
        **HEAD,
        **SMALL_CROPS,
    },
    "simclr": HEAD,
    "byol": HEAD,
    "lejepa": {"num_directions": 16, **HEAD, **SMALL_CROPS},
    "dino": {"num_prototypes": 12, "freeze_prototypes_steps": 1, **HEAD, **SMALL_CROPS},
    "msn": {"num_prototypes": 12, **HEAD, **SMALL_CROPS},
    "data2vec": {"top_blocks": 1},
}
# I-JEPA in its other forms, whose losses compare the examples of a batch.
WITH_BATCH_STATISTICS = {
    "variance_covariance": {
        "target_norm": "batch",
        "regularizer": {"name": "variance_covariance"},
    },
    "sigreg": {"regularizer": {"name": "sigreg", "num_directions": 16}},
}


def small(name, changes=None, **optimizer):
    """The objective's config of the bundled images, made small."""
    config = load_config_file("fashion_mnist" if name == "ijepa" else f"fashion_mnist_{name}")
    config.epochs, config.batch_size = EPOCHS, 16
    config.model.update({"patch_size": 7, "embed_dim": 16, "depth": 1, "num_heads": 2})
    config.model.drop_path_rate = 0.2  # so that the random keys count
    config.objective.update(SMALL[name] | (changes or {}))
    if name == "ijepa":
        config.objective.masks.target_aspect_ratio = (1.0, 1.0)
    # Adam's first steps divide gradients by their own size; a large eps keeps rounding small.
    lr = 5e-4 if name == "msn" else 1e-3  # so does a smaller update
    config.optimizer.update({"eps": 1e-2, "lr": lr, "warmup_epochs": 0.5, **optimizer})
    config.logging.update({"every_steps": 1, "diagnostics_every_steps": 2, "knn_every_steps": 1})
    return resolve(config)


def test_every_objective_is_tested_here():
    assert SMALL.keys() == OBJECTIVES.keys()


@pytest.fixture(scope="module")
def source():
    """Forty noisy images of ten classes: two batches of 16 an epoch, eight left over."""
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 10
    images = rng.integers(0, 100, (40, 28, 28, 1)) + 15 * labels[:, None, None, None]
    return array_source(images.astype(np.uint8), labels, ("",) * 10, (28, 28))


@pytest.mark.parametrize("name", SMALL)
def test_batches_are_what_the_objective_declares(name, source):
    config = small(name)
    objective = make_objective(config)
    stream = stream_of(config, source)
    ((shapes, share),) = stream.variants(0)
    assert share == 1.0
    assert ((shapes, share),) == objective.needs.variants(16)
    (batch,) = stream.batches(0, 1, None)
    for key, shape in shapes.items():
        assert (batch[key].shape, batch[key].dtype) == (shape.shape, shape.dtype), key
    assert batch.keys() - shapes.keys() == {"example_index", *stream.counted}
    assert all(value > 0 for value in objective.flops(shapes).values())


class Run(NamedTuple):
    """Four steps on one device."""

    setup: Any
    arrays: list[dict[str, np.ndarray]]  # the batches
    start: Any  # the state before them
    metrics: list[dict[str, Any]]
    before_last: Any  # the state after three steps
    end: Any


@pytest.fixture(scope="module")
def run_of(source):
    """(name in SMALL, name in WITH_BATCH_STATISTICS or None) -> its `Run`."""

    @functools.cache
    def run(name, changes=None):
        config = small(name, WITH_BATCH_STATISTICS.get(changes))
        arrays = arrays_of(config, source)
        setup = set_up_on(1, config)
        start = setup.create()
        kept = jax.device_get(start)
        metrics, states = four_steps(setup, start, arrays)
        return Run(setup, arrays, kept, metrics, states[2], states[3])

    return run


def set_up_on(devices, config):
    mesh = make_mesh(MeshConfig(data=devices), jax.devices()[:devices])
    return set_up(config, make_objective(config), steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh)


def four_steps(setup, state, batches):
    """The metrics and states of these steps."""
    metrics, states = [], []
    for arrays in batches:
        state, measured = setup.step(state, jax.device_put(arrays, batch_sharding(setup.mesh)))
        metrics.append(jax.device_get(measured))
        states.append(jax.device_get(state))
    return metrics, states


def arrays_of(config, source):
    """The batches of steps 0 to 3."""
    stream = stream_of(config, source)
    names = stream.variants(0)[0][0]
    return [{key: batch[key] for key in names} for batch in stream.batches(0, 4, None)]


@pytest.mark.parametrize(
    ("name", "changes"),
    [(name, None) for name in SMALL if name != "ijepa"]  # that one: tests/test_sharding.py
    + [("ijepa", changes) for changes in WITH_BATCH_STATISTICS],
)
def test_one_and_eight_devices_give_the_same_losses(name, changes, run_of):
    _, arrays, start, one, *_ = run_of(name, changes)
    setup = set_up_on(8, small(name, WITH_BATCH_STATISTICS.get(changes)))
    start = jax.device_put(start, jax.tree.map(lambda x: x.sharding, setup.like))
    eight, _ = four_steps(setup, start, arrays)
    losses = [[float(m["loss"]) for m in metrics] for metrics in (one, eight)]
    assert len(set(losses[0])) == 4  # something is trained
    # An update passes rounding on, how much differs from machine to machine.
    tolerance = 1e-4 if name in ("swav", "simclr", "dino", "byol") else 1e-5
    np.testing.assert_allclose(losses[1][0], losses[0][0], rtol=1e-5)
    np.testing.assert_allclose(losses[1], losses[0], rtol=tolerance)
    # Two and three normalisations of what is nearly the same for all images at the start.
    tolerance = 1e-3 if name in ("byol", "msn") else 2e-4
    for a, b in zip(one, eight, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_allclose(b[key], a[key], rtol=tolerance, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", ["dino", "msn"])
def test_views_and_their_features_stay_on_their_devices(name):
    """Heads on gathered features would be computed on each device for the whole batch."""
    config = small(name)
    mesh = make_mesh(MeshConfig(data=8), jax.devices())
    setup = set_up(config, make_objective(config), steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh)
    ((shapes, _),) = make_objective(config).needs.variants(config.batch_size)
    program = setup.step.lower(setup.like, shapes).compile().as_text()
    assert by_kind(collectives(program)).keys() == {"all-reduce"}


@pytest.mark.parametrize("name", [name for name in SMALL if name != "ijepa"])  # in test_loop
def test_a_state_that_went_through_a_checkpoint_goes_on_bitwise(name, run_of, tmp_path):
    """Averages, queue, centre and all; SwAV's queue is in use by then."""
    config, run = small(name), run_of(name, None)
    objective = make_objective(config)
    manager = checkpoint.make_manager(tmp_path, config)
    checkpoint.save(manager, run.before_last, config, objective)
    manager.wait_until_finished()
    manager.close()
    restored = checkpoint.restore(checkpoint.find(tmp_path), run.setup.like, objective)
    arrays = jax.device_put(run.arrays[3], batch_sharding(run.setup.mesh))
    state, _ = run.setup.step(restored, arrays)
    assert jax.tree.structure(state) == jax.tree.structure(run.end)
    chex.assert_trees_all_equal(jax.device_get(state), run.end)


def trained(config, workdir, source, *, stop_after=None):
    calls = []

    def online(weights, names):
        del weights
        calls.append(None)
        if len(calls) == stop_after:
            signal.raise_signal(signal.SIGTERM)
        return dict.fromkeys(names, 0.5)

    objective = make_objective(config)
    stream = stream_of(config, source)
    train(config, workdir, objective=objective, stream=stream, online=online)
    like = set_up(config, objective, steps_per_epoch=STEPS_PER_EPOCH).like
    return jax.device_get(checkpoint.restore(checkpoint.find(workdir), like, objective))


def test_a_run_cut_in_the_middle_ends_bitwise_as_one_in_one_go(source, tmp_path):
    """With a queue; I-JEPA is cut in test_loop."""
    config = small("swav")
    whole = trained(config, tmp_path / "whole", source)
    with pytest.raises(PreemptedError):
        trained(config, tmp_path / "cut", source, stop_after=2)
    resumed = trained(config, tmp_path / "cut", source)
    assert whole.step == EPOCHS * STEPS_PER_EPOCH
    assert jax.tree.structure(whole) == jax.tree.structure(resumed)
    chex.assert_trees_all_equal(resumed, whole)


@pytest.mark.parametrize("changes", WITH_BATCH_STATISTICS.values(), ids=WITH_BATCH_STATISTICS)
def test_ijepa_with_batch_statistics_does_not_accumulate_gradients(changes):
    config = small("ijepa", changes, accumulation_steps=2)
    with pytest.raises(UserError, match=r"accumulation_steps = 2: must be 1 for ijepa"):
        set_up(config, make_objective(config), steps_per_epoch=STEPS_PER_EPOCH)


@pytest.mark.parametrize("name", SMALL)
def test_gradients_are_accumulated_only_where_the_loss_is_a_mean_over_examples(name):
    config = small(name, accumulation_steps=2)
    objective = make_objective(config)
    if objective.mean_over_examples:
        set_up(config, objective, steps_per_epoch=STEPS_PER_EPOCH)
        return
    with pytest.raises(UserError, match=rf"accumulation_steps = 2: must be 1 for {name}"):
        set_up(config, objective, steps_per_epoch=STEPS_PER_EPOCH)


@pytest.mark.parametrize("name", SMALL)
def test_each_encoder_lies_where_the_objective_says(name):
    config = small(name)
    objective = make_objective(config)
    like = set_up(config, objective, steps_per_epoch=STEPS_PER_EPOCH).like
    images = jax.ShapeDtypeStruct((3, 28, 28, 3), np.float32)
    for encoder, path in objective.encoders.items():
        tokens = jax.eval_shape(objective.encode, at_path(like, path), images)
        assert (tokens.shape, tokens.dtype) == ((3, 16, 16), np.float32)
        initial = initial_encoder(objective, config.seed, encoder)
        assert jax.tree.structure(initial) == jax.tree.structure(at_path(like, path))
