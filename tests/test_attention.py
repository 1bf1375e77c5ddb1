"""Which attention runs. cuDNN's needs a GPU: here it is asked for, and its absence survived."""

import logging

import jax
import pytest

from jepa_jax.models import attention


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    # Without what an earlier test has made it remember.
    monkeypatch.setattr(attention, "cudnn_works", attention.cudnn_works.__wrapped__)


def test_case_58_where_cudnn_s_does_not_compile_xla_s_runs_and_says_so(on_gpu, caplog):
    with caplog.at_level(logging.WARNING):
        assert attention.choose_attention("auto", "bfloat16", 64) == "xla"
    assert "no cuDNN for head dimension 64" in caplog.text


@pytest.mark.parametrize(
    ("asked", "dtype", "head_dim", "chosen"),
    [
        ("auto", "bfloat16", 80, "cudnn"),
        ("auto", "bfloat16", 24, "cudnn"),
        ("xla", "bfloat16", 80, "xla"),
        ("auto", "float32", 80, "xla"),
        ("auto", "bfloat16", 36, "xla"),  # not a multiple of 8
        ("auto", "bfloat16", 136, "xla"),
    ],
)
def test_cudnn_s_runs_where_its_conditions_hold(
    on_gpu, monkeypatch, asked, dtype, head_dim, chosen
):
    monkeypatch.setattr(attention, "cudnn_works", lambda head_dim: True)
    assert attention.choose_attention(asked, dtype, head_dim) == chosen


@pytest.mark.parametrize(("others", "chosen"), [([True, True], "cudnn"), ([True, False], "xla")])
def test_all_processes_choose_the_same(on_gpu, monkeypatch, caplog, others, chosen):
    monkeypatch.setattr(attention, "cudnn_works", lambda head_dim: True)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    told = []

    def gather(mine):
        told.append(mine)
        return others

    monkeypatch.setattr(attention.multihost_utils, "process_allgather", gather)
    for _ in range(2):  # the second time nobody is asked
        assert attention.choose_attention("auto", "bfloat16", 64) == chosen
    assert told == [True]
    assert ("not in every process" in caplog.text) == (chosen == "xla")


def test_case_58_without_a_gpu_xla_s_runs_unasked(monkeypatch):
    monkeypatch.setattr(attention, "cudnn_works", lambda head_dim: pytest.fail("no GPU here"))
    assert attention.choose_attention("auto", "bfloat16", 64) == "xla"
