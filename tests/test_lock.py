"""One run at a time in a workdir."""

import errno
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from jepa_jax.config import resolve
from jepa_jax.errors import UserError
from jepa_jax.train import pretrain
from jepa_jax.training.lock import only_run_in

HOLD = """
import pathlib, sys, time
from jepa_jax.training.lock import only_run_in
with only_run_in(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_case_30_a_second_run_is_refused_and_the_first_goes_on(tiny, tmp_path):
    config = resolve(tiny)
    with only_run_in(tmp_path):
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(
            UserError, match=r"--workdir .*: another run writes there \(process \d+"
        ):
            pretrain(config, tmp_path)
        assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}
    with only_run_in(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_case_30_a_killed_run_leaves_no_lock(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"\(process {holder.pid} on "), only_run_in(tmp_path):
            pass
        holder.kill()
        holder.wait()
        assert (tmp_path / ".lock").exists()  # but nobody holds it
        with only_run_in(tmp_path):
            pass


def test_case_32_a_workdir_that_became_read_only_is_told(tmp_path, monkeypatch):
    """With the lock of a killed run, which is a file that can be opened still."""
    (tmp_path / ".lock").touch()
    real = os.open

    def read_only(path, flags, *arguments, **more):
        if str(path).startswith(str(tmp_path)) and flags & os.O_CREAT and not os.path.exists(path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        if str(path) == str(tmp_path) and flags & os.O_RDWR:  # for a file without a name
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *arguments, **more)

    monkeypatch.setattr(os, "open", read_only)
    told = r"--workdir .*: can't write there: Read-only file system"
    with pytest.raises(UserError, match=told), only_run_in(tmp_path):
        pass


def test_of_a_run_that_is_refused_nothing_stays(tmp_path):
    workdir = tmp_path / "new"
    with only_run_in(workdir):
        assert workdir.is_dir()
    assert not workdir.exists()


def test_a_workdir_that_is_a_file_is_told(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"--workdir .*file: can't write there"),
        only_run_in(tmp_path / "file"),
    ):
        pass
