"""Weights & Biases: what it gets, and that the run does not depend on it."""

import json
import logging
import struct
import sys
import time
import types
from unittest.mock import Mock

import jax
import pytest
from PIL import Image

from jepa_jax.batch.spec import Stream
from jepa_jax.config import resolve
from jepa_jax.errors import UserError
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training.loop import train
from jepa_jax.training.metrics import read_metrics
from jepa_jax.training.run_log import RunLog


@pytest.fixture
def config(tiny):
    tiny.logging.wandb = "pictures-of-clothes"
    return resolve(tiny)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    for name, value in {"MODE": "offline", "SILENT": "true", "ERROR_REPORTING": "false"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)


@pytest.fixture
def fake(monkeypatch):
    """In place of the package: its second row can't be sent."""
    rows = []

    def send(row):
        rows.append(row)
        if len(rows) == 2:
            raise ConnectionError("no network")

    run = types.SimpleNamespace(
        define_metric=lambda *_, **__: None, log=send, finish=lambda exit_code: rows.append("end")
    )
    module = types.SimpleNamespace(
        rows=rows,
        starts=[],
        init=lambda **settings: module.starts.append(settings) or run,
        Settings=dict,
        Image=str,
        errors=types.SimpleNamespace(UsageError=ZeroDivisionError),
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def records(path):
    """Of an offline run: blocks of 32 KiB, in them checksum, length, kind and a (part of a) record.

    That is the form of LevelDB's log, behind seven bytes.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, record = path.read_bytes(), 7, b""
    while at < len(content):
        left = -at % 32768 or 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole one, or the last part
            yield Record.FromString(record)
            record = b""


def rows_of(path):
    """What was logged, without wandb's own values."""
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            row = {"/".join(item.nested_key) or item.key: item for item in record.history.item}
            yield {n: json.loads(x.value_json) for n, x in row.items() if not n.startswith("_")}


def test_an_offline_run_has_numbers_pictures_and_config_and_a_resumed_one_goes_on_in_it(
    config, tmp_path
):
    Image.new("RGB", (9, 5)).save(tmp_path / "masks.png")
    starts = []
    for start in (0, 2):
        run_log = RunLog(config, tmp_path, start_step=start, end_step=4)
        run_log.write(start + 1, {"loss": 0.5 - start})
        run_log.show(start + 1, [tmp_path / "masks.png"] if start == 0 else [])
        run_log.write(start + 2, {"loss": 0.25, "lr": 0.1})
        run_log.close(failed=start == 0)
        starts += {*tmp_path.glob("wandb/offline-run-*/*.wandb")} - {*starts}
        time.sleep(1.05)  # a folder of wandb is named for its second
    first, second = map(list, map(rows_of, starts))
    picture = first.pop(1)
    assert first == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "lr": 0.1}]
    assert second == [{"step": 3, "loss": -1.5}, {"step": 4, "loss": 0.25, "lr": 0.1}]
    assert picture["step"] == 1
    assert [picture[f"pictures/masks/{name}"] for name in ("width", "height")] == [9, 5]
    copied = starts[0].parent / "files" / picture["pictures/masks/path"]
    assert copied.read_bytes() == (tmp_path / "masks.png").read_bytes()

    runs, exits = [], []
    for path in starts:
        found = list(records(path))
        runs += [record.run for record in found if record.WhichOneof("record_type") == "run"][:1]
        exits += [x.exit.exit_code for x in found if x.WhichOneof("record_type") == "exit"]
    assert runs[0].run_id == runs[1].run_id == (tmp_path / "wandb_id.txt").read_text().strip()
    assert {run.project for run in runs} == {"pictures-of-clothes"}
    assert [run.display_name for run in runs] == [tmp_path.name, ""]
    sent = {item.key: json.loads(item.value_json) for item in runs[1].config.update}
    assert sent["model"]["embed_dim"] == 16
    assert sent["batch_size"] == 16
    assert exits == [1, 0]


@pytest.mark.parametrize("module", [None, types.ModuleType("wandb")])  # a folder of that name, too
def test_a_missing_package_is_one_line_before_anything_is_done(
    config, tmp_path, monkeypatch, module
):
    monkeypatch.setitem(sys.modules, "wandb", module)
    with pytest.raises(UserError) as raised:
        train(config, tmp_path / "run", objective=make_objective(config), stream=Mock(spec=Stream))
    assert str(raised.value).startswith("config.logging.wandb = 'pictures-of-clothes': the package")
    assert "pip install wandb" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_name_that_wandb_refuses_is_the_users_mistake(tiny, tmp_path):
    tiny.logging.wandb = "clothes/shoes"
    with pytest.raises(UserError, match=r"^config.logging.wandb = 'clothes/shoes': Invalid proj"):
        RunLog(resolve(tiny), tmp_path, start_step=0, end_step=4)


def test_what_goes_wrong_with_it_is_said_once_and_the_run_goes_on(config, tmp_path, fake, caplog):
    run_log = RunLog(config, tmp_path, start_step=0, end_step=4)
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 3):
            run_log.write(step, {"loss": 1.0})
        run_log.show(3, [])
        run_log.close(failed=False)
    assert [row["step"] for row in fake.rows] == [1, 2]
    assert caplog.messages == ["Weights & Biases gets no more: ConnectionError: no network"]
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_only_the_first_process_talks_to_it(config, tmp_path, fake, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    run_log = RunLog(config, tmp_path, start_step=0, end_step=4)
    run_log.write(1, {"loss": 1.0})
    run_log.close(failed=False)
    assert (fake.starts, fake.rows) == ([], [])
