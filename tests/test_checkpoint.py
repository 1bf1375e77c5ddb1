"""Checkpoints: what is read, and what a damaged one does."""

import errno
import json
import logging
import pathlib
import re
import shutil

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jepa_jax.config import resolve
from jepa_jax.errors import UserError
from jepa_jax.interop import converted
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training import checkpoint
from jepa_jax.training.items import read_item
from jepa_jax.training.resume import check_resumable
from jepa_jax.training.setup import set_up


@pytest.fixture
def config(tiny):
    return resolve(tiny)


def save_state(config, workdir, mesh):
    """A state, the folder of its checkpoint, and what to restore it into."""
    objective = make_objective(config)
    setup = set_up(config, objective, steps_per_epoch=10, mesh=mesh)
    state = setup.create()
    # All leaves different, so that no two can be mixed up.
    leaves, structure = jax.tree.flatten(state)
    leaves = [leaf + i for i, leaf in enumerate(leaves)]
    state = jax.tree.unflatten(structure, leaves)
    manager = checkpoint.make_manager(workdir, config)
    checkpoint.save(manager, state, config, objective)
    manager.wait_until_finished()
    manager.close()
    return jax.device_get(state), checkpoint.find(workdir), setup.like


@pytest.fixture
def saved(config, tmp_path, one_device):
    return save_state(config, tmp_path, one_device)


def restore_target(folder, config):
    return checkpoint.restore_encoder(folder, "target_encoder", make_objective(config))


def assert_equal(ours, expected):
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    chex.assert_trees_all_equal(ours, expected)


def test_a_state_is_restored_as_it_was_saved(saved, config):
    state, folder, like = saved
    assert_equal(jax.device_get(checkpoint.restore(folder, like, make_objective(config))), state)


def test_a_first_moment_in_bfloat16_is_restored_as_such(tiny, tmp_path, one_device):
    tiny.optimizer.first_moment_dtype = "bfloat16"
    config = resolve(tiny)
    state, folder, like = save_state(config, tmp_path, one_device)
    restored = jax.device_get(checkpoint.restore(folder, like, make_objective(config)))
    assert_equal(restored, state)
    types = [x.dtype.name for x in jax.tree.leaves(restored.optimizer_state)]
    assert types.count("bfloat16") == types.count("float32") == len(jax.tree.leaves(state.params))


def test_the_configuration_is_saved_with_it(saved, config):
    assert checkpoint.read_config(saved[1]) == config


@pytest.mark.parametrize(
    ("section", "field", "value", "said"),
    [
        ("model", "num_heads", 3, "config.model.num_heads = 3"),
        ("model", "patch_size", 5, "multiple of"),
        ("data", "mean", [0.5, 0.5], "config.data.mean"),
        ("optimizer", "b1", 7.0, "config.optimizer.b1 = 7.0: must lie in 0..1"),
    ],
)
def test_a_configuration_that_no_user_could_set_is_refused(saved, section, field, value, said):
    path = saved[1] / "config" / "metadata"
    fields = json.loads(path.read_text())
    fields[section][field] = value
    path.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=f"checkpoint .*{re.escape(said)}"):
        checkpoint.read_config(saved[1])


def test_the_target_encoder_is_read_without_the_other_arrays(saved, config):
    """The other files are removed, and it makes no difference."""
    state, folder, _ = saved
    shutil.rmtree(folder / "params")
    shutil.rmtree(folder / "optimizer_state")
    restored = restore_target(folder, config)
    assert_equal(jax.device_get(restored), state.objective_state.target)


@pytest.mark.parametrize("damage", ["truncate", "empty", "remove"])
def test_a_damaged_checkpoint_gives_one_line(saved, config, damage):
    _, folder, _ = saved
    files = [path for path in (folder / "target_encoder").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    data = largest.read_bytes()
    if damage == "remove":
        largest.unlink()
    else:
        largest.write_bytes(data[: len(data) // 2 if damage == "truncate" else 0])
    with pytest.raises(UserError) as error:
        restore_target(folder, config)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
    assert "is damaged" in str(error.value)
    assert error.value.__cause__ is not None  # for --traceback


@pytest.mark.parametrize("name", ["_METADATA", "_sharding"])
def test_damaged_metadata_gives_one_line(saved, config, name):
    _, folder, _ = saved
    (folder / "target_encoder" / name).write_bytes(b"\x00")
    with pytest.raises(UserError, match=r"target_encoder (is damaged|can't be read)") as error:
        restore_target(folder, config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        PermissionError(errno.EACCES, "Permission denied"),
        TimeoutError("the network is down"),
        RuntimeError("a fault of the library"),
    ],
)
def test_what_says_nothing_of_the_bytes_is_no_reason_to_move_a_checkpoint_away(
    saved, config, monkeypatch, failure
):
    def restore(self, *arguments):
        raise failure

    monkeypatch.setattr(ocp.StandardCheckpointer, "restore", restore)
    with pytest.raises(UserError, match=r"target_encoder can't be read: ") as error:
        restore_target(saved[1], config)
    assert "damaged" not in str(error.value)
    assert "away" not in str(error.value)
    assert error.value.__cause__ is failure


def test_other_logs_are_heard_while_a_checkpoint_is_read(saved, config, monkeypatch, caplog):
    read = ocp.StandardCheckpointer.restore

    def restore(self, *arguments):
        logging.getLogger("somebody.else").critical("heard")
        return read(self, *arguments)

    monkeypatch.setattr(ocp.StandardCheckpointer, "restore", restore)
    restore_target(saved[1], config)
    assert "heard" in caplog.text


def test_a_missing_item_gives_one_line(saved, config):
    _, folder, like = saved
    shutil.rmtree(folder / "optimizer_state")
    with pytest.raises(UserError, match=r"optimizer_state is damaged \(.*No such file"):
        checkpoint.restore(folder, like, make_objective(config))


def test_case_26_another_architecture_is_named_by_its_arrays(saved, tiny):
    tiny.model.embed_dim = 32
    with pytest.raises(UserError, match=r"another model: .*bias is float32\(.*16\), not .*32\)"):
        restore_target(saved[1], resolve(tiny))


def test_case_26_another_type_is_refused(saved, config):
    """Orbax itself would convert without a word."""
    state, folder, _ = saved
    half = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jax.numpy.bfloat16),
        state.objective_state.target,
    )
    with pytest.raises(UserError, match=r"is float32.*, not bfloat16"):
        read_item(folder / "target_encoder", half)


def test_either_encoder_can_be_read(saved, config):
    state, folder, _ = saved
    for network, expected in (
        ("target_encoder", state.objective_state.target),
        ("encoder", state.params["encoder"]),
    ):
        restored = checkpoint.restore_encoder(folder, network, make_objective(config))
        assert_equal(jax.device_get(restored), expected)


def test_an_encoder_that_is_not_there_is_refused(saved, config):
    _, folder, _ = saved
    shutil.rmtree(folder / "target_encoder")
    with pytest.raises(UserError, match=r"holds only the encoder"):
        restore_target(folder, config)
    with pytest.raises(UserError, match=r"network 'teacher': must be one of target_encoder, enc"):
        checkpoint.restore_encoder(folder, "teacher", make_objective(config))


def test_a_checkpoint_without_optimizer_is_no_start_for_training(saved, config):
    """Not even one of step 0, which would else be trained over from scratch."""
    _, folder, _ = saved
    shutil.rmtree(folder / "optimizer_state")
    with pytest.raises(UserError, match=r"holds no optimizer state"):
        check_resumable(folder, config)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint there"):
        checkpoint.find(tmp_path / "nowhere")


def test_a_workdir_and_a_steps_folder_are_both_found(saved):
    folder = saved[1]
    assert checkpoint.find(folder.parent.parent) == folder
    assert checkpoint.find(folder) == folder


def test_unfinished_checkpoints_do_not_count(tmp_path):
    for name in ("5", "12", "20.orbax-checkpoint-tmp", "latest"):
        config = tmp_path / "checkpoints" / name / "config" / "metadata"
        config.parent.mkdir(parents=True)
        config.write_text('{"format": 2}')
    assert checkpoint.latest_step(tmp_path) == 12
    assert checkpoint.latest_step(tmp_path / "elsewhere") is None


@pytest.mark.skipif(not pathlib.Path("/proc/self/io").exists(), reason="only Linux counts")
def test_an_encoder_beside_a_large_predictor_is_read_alone(tiny, tmp_path):
    """By what the operating system says that this process has read."""
    tiny.objective.predictor.update({"embed_dim": 256, "depth": 3})
    config = resolve(tiny)
    objective = make_objective(config)
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    rng = np.random.default_rng(0)  # nothing that could be compressed
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)
    converted.write(tmp_path / "large", [("params", params)], config=config, source={})

    def read():
        counts = pathlib.Path("/proc/self/io").read_text().splitlines()
        return int(dict(line.split(": ") for line in counts)["rchar"])

    checkpoint.restore_encoder(tmp_path / "large", "encoder", objective)  # imports read too
    before = read()
    restored = checkpoint.restore_encoder(tmp_path / "large", "encoder", objective)
    bytes_read = read() - before
    assert_equal(jax.device_get(restored), params["encoder"])
    of_encoder, of_all = (
        sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (params["encoder"], params)
    )
    assert of_all > 200 * of_encoder
    assert of_encoder < bytes_read < of_encoder + 200_000  # with the lists of what there is
