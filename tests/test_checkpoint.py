"""Checkpoints: what is read, and what a damaged one does."""

import shutil

import jax
import numpy as np
import pytest

from jepa_jax.config import resolve
from jepa_jax.errors import UserError
from jepa_jax.objectives.ijepa import make_objective
from jepa_jax.training import checkpoint
from jepa_jax.training.ema import get_target
from jepa_jax.training.optimizer import make_optimizer
from jepa_jax.training.schedules import make_schedules
from jepa_jax.training.step import abstract_state, create_state


@pytest.fixture
def config(tiny):
    return resolve(tiny)


@pytest.fixture
def saved(config, tmp_path, one_device):
    """A state and the folder of its checkpoint."""
    objective = make_objective(config)
    optimizer = make_optimizer(config.optimizer, make_schedules(config, 10), objective.target_of)
    state = create_state(objective, optimizer, seed=0, mesh=one_device)
    # All leaves different, so that no two can be mixed up.
    leaves, structure = jax.tree.flatten(state)
    leaves = [leaf + i for i, leaf in enumerate(leaves)]
    state = jax.tree.unflatten(structure, leaves)
    manager = checkpoint.make_manager(tmp_path, config)
    checkpoint.save(manager, state, config)
    manager.wait_until_finished()
    manager.close()
    like = abstract_state(objective, optimizer, mesh=one_device)
    return jax.device_get(state), checkpoint.find(tmp_path), like


def restore_target(folder, config):
    return checkpoint.restore_network(folder, "target_encoder", make_objective(config))


def assert_equal(ours, expected):
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


def test_a_state_is_restored_as_it_was_saved(saved):
    state, folder, like = saved
    assert_equal(jax.device_get(checkpoint.restore(folder, like)), state)


def test_the_configuration_is_saved_with_it(saved, config):
    assert checkpoint.read_config(saved[1]) == config


def test_the_target_encoder_is_read_without_the_other_arrays(saved, config):
    """The files of all else are gone, and it makes no difference."""
    state, folder, _ = saved
    shutil.rmtree(folder / "params")
    shutil.rmtree(folder / "optimizer_state")
    restored = restore_target(folder, config)
    assert_equal(jax.device_get(restored), get_target(state.optimizer_state))


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


def test_a_missing_item_gives_one_line(saved, config):
    _, folder, like = saved
    shutil.rmtree(folder / "optimizer_state")
    with pytest.raises(UserError, match=r"optimizer_state can't be read"):
        checkpoint.restore(folder, like)


def test_another_architecture_is_named_by_its_arrays(saved, tiny):
    tiny.model.embed_dim = 32
    with pytest.raises(UserError, match=r"another model: .*bias is float32\(.*16\), not .*32\)"):
        restore_target(saved[1], resolve(tiny))


def test_another_type_is_refused(saved, config):
    """Orbax itself would convert without a word."""
    state, folder, _ = saved
    half = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jax.numpy.bfloat16),
        get_target(state.optimizer_state),
    )
    with pytest.raises(UserError, match=r"is float32.*, not bfloat16"):
        checkpoint.read_item(folder / "target_encoder", half)


def test_either_encoder_can_be_read(saved, config):
    state, folder, _ = saved
    for network, expected in (
        ("target_encoder", get_target(state.optimizer_state)),
        ("encoder", state.params["encoder"]),
    ):
        restored = checkpoint.restore_network(folder, network, make_objective(config))
        assert_equal(jax.device_get(restored), expected)


def test_an_encoder_that_is_not_there_is_refused(saved, config):
    _, folder, _ = saved
    shutil.rmtree(folder / "target_encoder")
    with pytest.raises(UserError, match=r"holds only the encoder"):
        restore_target(folder, config)
    with pytest.raises(UserError, match=r"--network teacher: must be one of target_encoder, enc"):
        checkpoint.restore_network(folder, "teacher", make_objective(config))


def test_a_checkpoint_without_optimizer_is_no_start_for_training(saved, config):
    """Not even one of step 0, which would else be trained over from scratch."""
    _, folder, _ = saved
    shutil.rmtree(folder / "optimizer_state")
    with pytest.raises(UserError, match=r"holds no optimizer state"):
        checkpoint.check_resumable(folder, config)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint there"):
        checkpoint.find(tmp_path / "nowhere")


def test_a_workdir_and_a_steps_folder_are_both_found(saved):
    folder = saved[1]
    assert checkpoint.find(folder.parent.parent) == folder
    assert checkpoint.find(folder) == folder


def test_unfinished_checkpoints_do_not_count(tmp_path):
    for name in ("5", "12", "20.orbax-checkpoint-tmp", "latest"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert checkpoint.latest_step(tmp_path) == 12
    assert checkpoint.latest_step(tmp_path / "elsewhere") is None
