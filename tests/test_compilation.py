"""Compiling in the background; and the persistent cache: private, and never in the way."""

import stat
import threading
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from jepa_jax.training.compilation import compile_ahead, use_compilation_cache


@pytest.fixture(autouse=True)
def restored():
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_case_56_the_cache_is_made_for_this_user_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "jepa_jax" / "xla"
    folder.mkdir(parents=True, mode=0o777)  # left open by someone
    assert use_compilation_cache() == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert jax.config.jax_compilation_cache_dir == str(folder)


def test_without_a_place_for_it_there_is_no_cache(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert use_compilation_cache() is None
    assert "no compilation cache" in caplog.text


def test_a_folder_named_by_the_user_is_left_to_jax(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    assert use_compilation_cache() == tmp_path
    assert jax.config.jax_compilation_cache_dir == before


class SlowStep:
    """Like a jitted step, but its second shape compiles only when the test allows it."""

    def __init__(self):
        self.allowed = threading.Event()
        self.order = []

    def __call__(self, state, batch):
        raise AssertionError("it is only ever compiled")

    def lower(self, state, batch):
        self.order.append(len(batch["x"].shape))
        if len(self.order) > 1:
            assert self.allowed.wait(timeout=60)
        return jax.jit(lambda state, batch: state + batch["x"].sum()).lower(state, batch)


def shapes_of_rank(*ranks):
    return [{"x": jax.ShapeDtypeStruct((2,) * rank, jnp.float32)} for rank in ranks]


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o700])
def test_case_56_a_named_folder_where_others_may_write_is_warned_of(
    tmp_path, monkeypatch, caplog, mode
):
    tmp_path.chmod(mode)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    assert use_compilation_cache() == tmp_path
    assert ("other users may write there" in caplog.text) == (mode != 0o700)


def test_the_first_shape_can_be_used_while_the_others_compile():
    step, state = SlowStep(), jax.ShapeDtypeStruct((), jnp.float32)
    compiled = compile_ahead(step, state, shapes_of_rank(2, 1, 3))
    assert compiled[0].result(timeout=60)(jnp.ones([]), {"x": jnp.ones((2, 2))}) == 5
    assert not compiled[1].done()
    assert compiled[2].cancel()  # as when training stops: what has not begun never does
    step.allowed.set()
    assert compiled[1].result(timeout=60)(jnp.ones([]), {"x": jnp.ones(2)}) == 3
    assert step.order == [2, 1]


def test_a_gpu_is_left_alone_until_all_is_compiled(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    step = SlowStep()
    threading.Timer(0.2, step.allowed.set).start()
    compiled = compile_ahead(step, jax.ShapeDtypeStruct((), jnp.float32), shapes_of_rank(2, 1, 3))
    assert all(future.done() for future in compiled)


class Together:
    """Like a jitted step, whose shapes compile only once all of them are being compiled."""

    def __init__(self, shapes):
        self.all_here = threading.Barrier(shapes)

    def lower(self, state, batch):
        self.shape = batch["x"].shape  # a second thread in here would overwrite it
        time.sleep(0.01)
        return Lowered(self.all_here, self.shape)


class Lowered(NamedTuple):
    all_here: threading.Barrier
    shape: tuple[int, ...]

    def compile(self):
        self.all_here.wait(timeout=60)
        return lambda: self.shape


def test_on_a_tpu_all_shapes_compile_at_once(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    shapes = shapes_of_rank(2, 1, 3)
    compiled = compile_ahead(Together(len(shapes)), None, shapes)
    assert [one.result(timeout=60)() for one in compiled] == [(2, 2), (2,), (2, 2, 2)]
    assert compile_ahead(Together(1), None, []) == []
