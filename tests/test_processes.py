"""Real runs of two processes, each with four of eight devices, beside one process with all."""

import json
import re
import signal

import jax
import numpy as np
import pytest
from PIL import Image
from two_processes import CONFIG, FIELDS, STEPS, finish, start

from jepa_jax.config import resolve
from jepa_jax.config.files import load_config
from jepa_jax.errors import PreemptedError, UserError
from jepa_jax.objectives.registry import make_objective
from jepa_jax.train import pretrain
from jepa_jax.training import checkpoint
from jepa_jax.training.processes import join
from jepa_jax.training.setup import set_up


def final_state(workdir):
    folder = checkpoint.find(workdir)
    config = checkpoint.read_config(folder)
    objective = make_objective(config)
    like = set_up(config, objective, steps_per_epoch=10).like
    return jax.device_get(checkpoint.restore(folder, like, objective))


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process with eight devices."""
    workdir = tmp_path_factory.mktemp("alone")
    pretrain(resolve(load_config(CONFIG, FIELDS)), workdir)
    return workdir


@pytest.fixture(scope="module")
def preempted(tmp_path_factory):
    """Two processes, of which the second is told to stop in mid-run."""
    workdir = tmp_path_factory.mktemp("together")
    by_time = "--config.checkpoint.every_minutes=1e-6"  # so after every step
    processes = start(workdir, [by_time], [by_time])
    for line in processes[0].stderr:
        if line.startswith("step 3/"):
            processes[1].send_signal(signal.SIGTERM)
            break
    outputs = finish(processes)
    return workdir, [process.returncode for process in processes], outputs


def test_case_08_sigterm_to_one_of_two_stops_both_after_the_same_step(preempted):
    workdir, codes, outputs = preempted
    assert codes == [PreemptedError.exit_code] * 2, outputs
    said = [re.search(r"stopped after step (\d+), which is saved", err) for _, err in outputs]
    assert said[0][1] == said[1][1] == str(checkpoint.latest_step(workdir))
    assert 3 < int(said[0][1]) < STEPS


def test_both_processes_save_by_time_after_the_same_step(preempted):
    """An unfinished checkpoint, which one of the two did not write, would have no such name."""
    workdir, codes, outputs = preempted
    assert codes == [PreemptedError.exit_code] * 2, outputs
    saved = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
    last = checkpoint.latest_step(workdir)
    assert saved == [last - 1, last]


def test_only_the_first_process_speaks(preempted):
    _, _, outputs = preempted
    assert "step 4/" in outputs[0][1]
    for word in ("compiled the step", "step 4/", "saving checkpoint"):
        assert word not in outputs[1][1]


def test_two_processes_take_the_steps_of_one(preempted, alone):
    workdir, _, _ = preempted
    together = {row["step"]: row["loss"] for row in rows(workdir) if "loss" in row}
    expected = {row["step"]: row["loss"] for row in rows(alone) if "loss" in row}
    assert len(together) >= 3
    for step, loss in together.items():
        np.testing.assert_allclose(loss, expected[step], rtol=1e-5)


def test_case_17_one_process_goes_on_where_two_were_stopped(preempted, alone):
    """With the same batches and masks, on another mesh."""
    workdir, _, _ = preempted
    stopped_at = checkpoint.latest_step(workdir)
    other_mesh = [field for field in FIELDS if "mesh" not in field]
    result = pretrain(resolve(load_config(CONFIG, other_mesh)), workdir)
    assert result["step"] == STEPS
    resumed = [row for row in rows(workdir) if row["step"] > stopped_at]
    expected = [row for row in rows(alone) if row["step"] > stopped_at]
    for one, other in zip(resumed, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() & {"loss", "lr", "momentum", "effective_rank"}:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-5)
        if "knn_accuracy" in one:
            for name in ("knn_accuracy", "linear_accuracy"):
                assert abs(one[name] - other[name]) < 0.01
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        final_state(workdir),
        final_state(alone),
    )


def test_case_20_processes_with_different_configurations_stop_with_one_line(tmp_path):
    processes = start(tmp_path / "run", [], ["--config.optimizer.lr=0.5"])
    outputs = finish(processes)
    assert [process.returncode for process in processes] == [UserError.exit_code] * 2
    errors = [[line for line in err.splitlines() if "error" in line] for _, err in outputs]
    assert [len(lines) for lines in errors] == [1, 1]
    assert "process 1 has other fields" in errors[0][0]
    assert "config.optimizer.lr is 0.5 here and 0.0015 there" in errors[1][0]
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_is_not_the_same_folder_for_all_is_refused(tmp_path):
    folders = (tmp_path / "host 0", tmp_path / "host 1")
    for folder in folders:
        folder.mkdir()
    processes = start("run", [], [], folders=folders)
    outputs = finish(processes)
    assert [process.returncode for process in processes] == [UserError.exit_code] * 2
    for _, err in outputs:
        assert "error: --workdir run: process 1 does not see what process 0 writes there" in err
    assert not any(any(folder.iterdir()) for folder in folders)


def test_processes_that_see_other_images_stop_with_one_line(tmp_path):
    folders, rng = (tmp_path / "host 0", tmp_path / "host 1"), np.random.default_rng(0)
    for folder, number in zip(folders, (17, 16), strict=True):
        (folder / "images").mkdir(parents=True)
        for i in range(number):
            pixels = rng.integers(0, 256, (28, 28, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
    fields = ["--config.data.source=folder", "--config.data.path=images", "--config.batch_size=8"]
    fields += ["--config.data.train_split=None", "--config.data.subset=None"]
    processes = start(tmp_path / "run", fields, fields, folders=folders)
    outputs = finish(processes)
    assert [process.returncode for process in processes] == [UserError.exit_code] * 2, outputs
    for _, err in outputs:
        assert "process 0 has 17 training images; process 1 has 16" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("where", ["automatic", "host,2,0", "host:1,2", "host:1,2,2", "h o:1,2,0"])
def test_a_place_that_cannot_be_read_gives_one_line(where):
    with pytest.raises(UserError, match=rf"--distributed {where}: must be auto, or HOST:PORT,N,I"):
        join(where)
