"""Faults of the list that have no other place; the tests of the others are named after them."""

import importlib
import logging
import os
import re
import signal
import threading
import time

import numpy as np
import pytest
import tensorflow as tf
from conftest import stream_of

import jepa_jax.data
from jepa_jax.config import resolve
from jepa_jax.data.sources import array_source
from jepa_jax.errors import UserError
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training import checkpoint
from jepa_jax.training.loop import train
from jepa_jax.training.preemption import notice_signals


def run(tiny, workdir):
    """Twelve steps with a checkpoint after every second one."""
    tiny.objective.masks.update({"target_scale": (0.25, 0.25), "target_aspect_ratio": (1.0, 1.0)})
    tiny.checkpoint.update({"every_steps": 2, "keep_last": 3})
    config = resolve(tiny)
    images = np.random.default_rng(0).integers(0, 256, (192, 28, 28, 1), np.uint8)
    source = array_source(images, np.zeros(192, np.int64), ("",), (28, 28))
    return train(
        config, workdir, objective=make_objective(config), stream=stream_of(config, source)
    )


class UsualError(Exception):
    """What the handler raises that was there before."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_case_07_the_first_signal_is_noted_and_the_second_acts_as_usual(number):
    def usual(*_):
        raise UsualError

    before = {each: signal.signal(each, usual) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        with notice_signals() as interrupted:
            assert not interrupted(1)
            signal.raise_signal(number)
            assert interrupted(2)
            for again in before:
                with pytest.raises(UsualError):
                    signal.raise_signal(again)
        with pytest.raises(UsualError):
            signal.raise_signal(number)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_case_33_slow_storage_has_one_save_in_flight_and_the_log_says_what_it_costs(
    tiny, tmp_path, monkeypatch, caplog
):
    """A save is not done before the next one has been asked for."""
    write, save = checkpoint.write_manifest, checkpoint.save
    writing, asked = threading.Semaphore(1), threading.Semaphore(0)
    most, saves = [], []

    def slowly(folder):
        most.append(writing.acquire(blocking=False))
        if folder.name != "12":
            assert asked.acquire(timeout=60)
            time.sleep(0.3)
        write(folder)
        writing.release()

    def ask(*arguments):
        if saves:
            asked.release()
        saves.append(arguments)
        save(*arguments)

    monkeypatch.setattr(checkpoint, "write_manifest", slowly)
    monkeypatch.setattr(checkpoint, "save", ask)
    caplog.set_level(logging.INFO, "jepa_jax")
    assert run(tiny, tmp_path)["step"] == 12
    assert most == [True] * 6
    said = re.findall(r"saving checkpoint (\d+): training stood still for (\S+) s", caplog.text)
    assert [int(step) for step, _ in said] == [2, 4, 6, 8, 10, 12]
    assert all(float(seconds) >= 0.3 for _, seconds in said[1:])
    assert {int(path.name) for path in (tmp_path / "checkpoints").iterdir()} == {8, 10, 12}


def test_case_55_a_workdir_of_any_name_is_that_folder_and_nothing_else(tiny, tmp_path, monkeypatch):
    name = "a b; touch stray $(touch stray) `touch stray` 'é\n'"
    monkeypatch.chdir(tmp_path)
    run(tiny, tmp_path / name)
    assert os.listdir(tmp_path) == [name]
    assert checkpoint.latest_step(tmp_path / name) == 12


@pytest.mark.parametrize("split", ["../elsewhere", "a/../../elsewhere", "/etc"])
def test_case_55_a_split_stays_within_the_data(tiny, split):
    tiny.data.train_split = split
    with pytest.raises(UserError, match=r"config.data.train_split = .*: must stay within"):
        resolve(tiny)


def test_case_57_tensorflow_gets_no_accelerator(monkeypatch):
    """tests/test_imports.py: nothing but jepa_jax.data imports TensorFlow."""
    hidden = []
    monkeypatch.setattr(
        tf.config, "set_visible_devices", lambda devices, kind: hidden.append((kind, devices))
    )
    importlib.reload(jepa_jax.data)
    assert ("GPU", []) in hidden
    assert ("TPU", []) in hidden


def test_case_60_a_clock_that_goes_backwards_changes_no_order(tiny, tmp_path, monkeypatch):
    real, calls = time.time, []

    def backwards():
        calls.append(1)
        return real() - 50.0 * len(calls)

    with monkeypatch.context() as patched:
        patched.setattr(time, "time", backwards)
        run(tiny, tmp_path)
    assert len(calls) > 10
    folders = sorted((tmp_path / "checkpoints").iterdir(), key=lambda path: int(path.name))
    assert [int(folder.name) for folder in folders] == [8, 10, 12]
    for age, folder in enumerate(folders):
        os.utime(folder, (1e9 - age, 1e9 - age))
    assert checkpoint.latest_step(tmp_path) == 12
    assert checkpoint.find(tmp_path, lambda _: ("params",)).name == "12"
    assert run(tiny, tmp_path) == {"step": 12, "loss": None}
