"""A closer look at a run: tables, one batch overfit, where a NaN arose, traces and programs."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from conftest import stream_of

from jepa_jax.config import MeshConfig, resolve
from jepa_jax.data.sources import array_source
from jepa_jax.errors import StoppedRunError, UserError
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training.debugging import parameter_table
from jepa_jax.training.loop import train
from jepa_jax.training.setup import set_up
from jepa_jax.training.sharding import make_mesh


@pytest.fixture(scope="module")
def source():
    images = np.random.default_rng(0).integers(0, 256, (160, 28, 28, 1), np.uint8)
    return array_source(images, None, (), (28, 28))


@pytest.fixture
def short(tiny):
    tiny.epochs = 3  # of ten steps
    tiny.objective.masks.target_scale = (0.25, 0.25)
    tiny.objective.masks.target_aspect_ratio = (1.0, 1.0)
    tiny.optimizer.update({"lr": 1e-2, "warmup_epochs": 0.0})
    tiny.logging.update({"every_steps": 1, "diagnostics_every_steps": 0, "knn_every_steps": 0})
    return tiny


def run(config, workdir, source, **others):
    config = resolve(config)
    objective, stream = make_objective(config), stream_of(config, source)
    return train(config, workdir, objective=objective, stream=stream, **others)


def test_debugging_learns_one_batch_by_heart(short, tmp_path, source):
    short.debug = True
    read = []

    def watched(index, crop, size):
        noted = tf.numpy_function(lambda i: read.append(i) or i, [index], tf.int64)
        with tf.control_dependencies([noted]):
            return source.load(index, crop, size)

    run(short, tmp_path, dataclasses.replace(source, load=watched))
    assert len(read) == 1
    losses = [
        json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(losses) == 30
    assert losses[-1] < 0.7 * losses[0]


def test_debugging_names_the_line_where_a_nan_arose(short, tmp_path, source):
    short.debug = True

    def damaged(state):
        state.params["encoder"]["patch_embed"]["kernel"] *= jnp.nan
        return state

    with pytest.raises(
        StoppedRunError, match=r"step 1: invalid value \(nan\) .*vision_transformer\.py:\d+: x = "
    ):
        run(short, tmp_path, source, initialize=damaged)


def test_steps_are_traced_and_programs_written_on_request(short, tmp_path, source):
    short.epochs = 1
    short.profile = {"steps": (3, 4), "hlo": True}
    run(short, tmp_path, source)
    assert list(tmp_path.glob("profile/**/*.xplane.pb"))
    assert list(tmp_path.glob("profile/**/perfetto_trace.json.gz"))
    (program,) = (tmp_path / "hlo").iterdir()
    assert program.read_text().startswith("HloModule jit_train_step")
    assert "target_index_16x2x4" in program.name


def test_without_request_nothing_is_written(short, tmp_path, source):
    short.epochs = 1
    run(short, tmp_path, source)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"checkpoints", "metrics.jsonl", "run.json", "tensorboard"}


@pytest.mark.parametrize("steps", [(5, 3), (0, 3), (-1, 2)])
def test_impossible_steps_to_trace_are_refused(tiny, steps):
    tiny.profile = {"steps": steps}
    with pytest.raises(UserError, match=r"config\.profile\.steps = .* 1 <= first <= last"):
        resolve(tiny)


def test_the_table_counts_every_parameter_and_a_device_s_share(tiny):
    tiny.model.update({"embed_dim": 16, "num_heads": 4})
    tiny.objective.predictor.num_heads = 4
    config = resolve(tiny)
    mesh, objective = make_mesh(MeshConfig(data=1, fsdp=2, tensor=4)), make_objective(config)
    params = set_up(config, objective, steps_per_epoch=10, mesh=mesh).like.params
    lines = [line.split() for line in parameter_table(params, mesh).splitlines()]
    assert lines[0] == ["mesh:", "data", "1", "x", "fsdp", "2", "x", "tensor", "4"]
    by_name = {line[0]: line for line in lines[2:]}
    # Two layers of 16 x 3 x 4 heads x 4: divided by fsdp 2 and tensor 4.
    assert by_name["encoder/transformer/blocks/attention/qkv/kernel"][-2:] == ["1,536", "192"]
    assert by_name["encoder/transformer/norm/scale"][-2:] == ["16", "16"]
    numbers = [[int(n.replace(",", "")) for n in line[-2:]] for line in lines[2:]]
    assert np.sum(numbers[:-1], axis=0).tolist() == numbers[-1]
