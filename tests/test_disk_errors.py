"""A disk that fails while a run writes; files of a limited size stand for one that is full."""

import contextlib
import errno
import os
import resource

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_jax.config import resolve
from jepa_jax.errors import StoppedRunError
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training import checkpoint
from jepa_jax.training.disk_errors import disk_errors_in_one_line
from jepa_jax.training.setup import set_up


@pytest.fixture
def limit():
    """Sets how large a file may become; Python ignores the signal that comes with it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_case_31_a_checkpoint_that_does_not_fit_is_one_line_and_the_one_before_it_is_whole(
    tiny, tmp_path, one_device, limit, capfd, caplog
):
    config = resolve(tiny)
    objective = make_objective(config)
    setup = set_up(config, objective, steps_per_epoch=10, mesh=one_device)
    state = setup.create()

    manager = checkpoint.make_manager(tmp_path, config)

    def save(step):
        at_step = state._replace(step=jnp.int32(step))
        checkpoint.save(manager, at_step, config, objective)
        manager.wait_until_finished()

    advice = r"can't save checkpoint 2: files may not be that large .* from checkpoint 1"
    save(1)
    limit(1000)
    with (
        pytest.raises(StoppedRunError, match=advice) as raised,
        disk_errors_in_one_line(tmp_path),
        contextlib.closing(manager),  # until then its threads may still write to the log
    ):
        save(2)
    limit(resource.RLIM_INFINITY)
    assert raised.value.exit_code == 3
    assert "Traceback" not in caplog.text
    assert "Traceback" not in capfd.readouterr().err
    folder = checkpoint.find(tmp_path)
    assert folder.name == "1"
    restored = jax.device_get(checkpoint.restore(folder, setup.like, objective))
    chex.assert_trees_all_equal(restored, jax.device_get(state._replace(step=np.int32(1))))


def test_case_32_a_workdir_that_is_renamed_in_mid_run_is_one_line_and_not_made_anew(
    tiny, tmp_path, one_device, capfd, caplog
):
    config, workdir = resolve(tiny), tmp_path / "run"
    objective = make_objective(config)
    state = set_up(config, objective, steps_per_epoch=10, mesh=one_device).create()
    manager = checkpoint.make_manager(workdir, config)
    checkpoint.save(manager, state._replace(step=jnp.int32(1)), config, objective)
    manager.wait_until_finished()
    workdir.rename(tmp_path / "renamed")
    gone = r"can't write: there is no folder checkpoints any more in .*/run; put it back"
    with (
        pytest.raises(StoppedRunError, match=gone),
        disk_errors_in_one_line(workdir),
        contextlib.closing(manager),
    ):
        checkpoint.save(manager, state._replace(step=jnp.int32(2)), config, objective)
    assert not workdir.exists()
    assert "Traceback" not in caplog.text
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EROFS, "the file system is read-only at"),
        (errno.EACCES, "permission denied in"),
        (errno.EIO, "input/output error in"),
        (errno.ENOENT, "there is no folder checkpoints any more in"),
    ],
)
def test_case_32_a_disk_that_fails_in_mid_run_is_one_line(tmp_path, number, said):
    error = OSError(number, os.strerror(number), str(tmp_path / "metrics.jsonl"))
    with pytest.raises(StoppedRunError, match=said), disk_errors_in_one_line(tmp_path):
        raise error
    elsewhere = OSError(number, os.strerror(number), "/data/images/1.jpg")
    with pytest.raises(OSError, match=r"1\.jpg"), disk_errors_in_one_line(tmp_path):
        raise elsewhere


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "can't write: no space left in"),
        (ValueError("RESOURCE_EXHAUSTED: Disk quota exceeded [..]"), "the quota of the disk"),
    ],
)
def test_whatever_else_does_not_fit_is_told_too(tmp_path, error, said):
    with pytest.raises(StoppedRunError, match=said) as raised, disk_errors_in_one_line(tmp_path):
        raise error
    assert raised.value.__cause__ is error


def test_other_errors_are_left_alone(tmp_path):
    no_memory = RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")
    with pytest.raises(RuntimeError, match="Out of memory"), disk_errors_in_one_line(tmp_path):
        raise no_memory
