"""The persistent compilation cache: private, and never in the way."""

import stat

import jax
import pytest

from jepa_jax.training.compilation import use_compilation_cache


@pytest.fixture(autouse=True)
def restored():
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_the_cache_is_made_for_this_user_alone(tmp_path, monkeypatch):
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
