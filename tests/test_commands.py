"""The commands as a user types them: JSON lines, exit codes, and mistakes in one line."""

import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY, load_config_file, run_module

from jepa_jax import command_line
from jepa_jax.config import resolve
from jepa_jax.config.files import load_config
from jepa_jax.errors import PreemptedError, StoppedRunError, UserError
from jepa_jax.train import main as train_main

CONFIG = str(REPOSITORY / "configs" / "fashion_mnist.py")
TINY = [
    "--config.epochs=1",
    "--config.batch_size=2000",
    "--config.model.patch_size=7",
    "--config.model.embed_dim=16",
    "--config.model.depth=1",
    "--config.objective.predictor.embed_dim=8",
    "--config.objective.predictor.depth=1",
    "--config.objective.masks.context_tokens=4",
    "--config.objective.masks.num_targets=2",
    "--config.logging.every_steps=1",
    "--config.logging.diagnostics_every_steps=2",
    "--config.logging.knn_every_steps=0",
]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("runs") / "quickstart"


@pytest.fixture(scope="module")
def quickstart(workdir):
    """All three commands' work in one process: train, probe, pictures."""
    smaller = [
        "--config.data.image_size=(16,16)",  # half of its own
        "--config.model.patch_size=4",
        "--config.objective.masks.target_scale=(0.25,0.25)",  # one step to compile
        "--config.objective.masks.target_aspect_ratio=(1.0,1.0)",
        "--config.data.subset.per_class=200",  # of 1,000: one batch, and probes of a second
    ]
    return run_module("quickstart", f"--workdir={workdir}", *TINY, *smaller)


def test_quickstart_ends_with_the_promised_json(quickstart, workdir):
    assert quickstart.returncode == 0, quickstart.stderr
    result = json.loads(quickstart.stdout.splitlines()[-1])
    assert result.keys() >= {"knn", "linear", "centred", "seconds", "workdir"}
    for cluttered, centred in ((result[p], result["centred"][p]) for p in ("knn", "linear")):
        assert cluttered.keys() == centred.keys() == {"pretrained", "random_init", "raw_pixels"}
        # 2,000 test images of ten classes: chance is 0.1, and all three are far above it.
        assert all(0.15 < accuracy < 0.6 for accuracy in cluttered.values())
        assert all(0.3 < accuracy < 0.95 for accuracy in centred.values())
    assert result["workdir"] == str(workdir)
    assert "Traceback" not in quickstart.stderr


def test_quickstart_draws_pictures(quickstart, workdir):
    assert quickstart.returncode == 0
    for name in ("masks", "curves", "feature_pca"):
        assert (workdir / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_probe_finds_what_quickstart_found(quickstart, workdir):
    probed = run_module("probe", "--config", "configs/probe/knn.py", f"--checkpoint={workdir}")
    assert probed.returncode == 0, probed.stderr
    result = json.loads(probed.stdout.splitlines()[-1])
    expected = json.loads(quickstart.stdout.splitlines()[-1])["knn"]
    assert result["protocol"] == "knn"
    assert result["accuracy"] == expected["pretrained"]
    assert result["controls"] == {name: expected[name] for name in ("random_init", "raw_pixels")}


def train(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    """`jepa_jax.train` in this process: exit code, and what it wrote to standard error."""
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    with pytest.raises(SystemExit) as exited:
        train_main()
    captured = capsys.readouterr()
    assert captured.out == ""
    return exited.value.code, captured.err


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.batchsize=3", "config.batchsize: no such field; did you mean config.batch_size"),
        ("--config.modl.depth=3", "config.modl: no such field; did you mean config.model?"),
        ("--config.batch_size=many", "config.batch_size = 'many': must be of type int"),
        ("--config.batch_size", "--config.batch_size: needs a value"),
        ("--config.epochs.x=1", "epochs is a value and has no fields"),
        ("--config.data.image_size=(30,28)", "the height must be a positive multiple of"),
        ("--config.model.num_heads=5", "must divide config.model.embed_dim = 64"),
        ("--config.batch_size=20000", "the data set has only 10000 images"),
        ("--config.batch_size=63", "must be a multiple of 8 (data x fsdp axes"),
        ("--config.mesh.data=3", "multiply to the number of devices, 8"),
        ("--config.objective.masks.context_tokens=40", "the largest that works is"),
        ("--config.objective.masks.target_scale=(1.0,1.0)", "the targets cover the grid"),
        ("--wrong=1", "unknown argument --wrong=1"),
    ],
)
def test_case_51_a_mistake_gives_one_line_and_code_2(
    monkeypatch, capsys, tmp_path, argument, message
):
    workdir = tmp_path / "run"
    code, error = train(
        monkeypatch, capsys, "--config", CONFIG, "--workdir", str(workdir), argument
    )
    assert code == 2
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in error
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, "there is no folder"),
        (lambda folder: folder.mkdir(), "no images in"),
        (lambda folder: (folder / "cat").mkdir(parents=True), "no images in"),
        (lambda folder: folder.write_text(""), "there is no folder"),
    ],
)
def test_a_bad_image_folder_gives_one_line(monkeypatch, capsys, tmp_path, make, message):
    folder = tmp_path / "images" / "train"
    folder.parent.mkdir()
    make(folder)
    arguments = ["--config.data.source=folder", f"--config.data.path={folder.parent}"]
    code, error = train(
        monkeypatch, capsys, "--config", CONFIG, "--workdir", str(tmp_path / "run"), *arguments
    )
    assert code == 2
    assert message in error
    assert str(folder) in error


def test_a_missing_config_file_gives_one_line(monkeypatch, capsys):
    code, error = train(monkeypatch, capsys, "--config", "configs/nope.py", "--workdir", "x")
    assert code == 2
    assert error == "error: --config configs/nope.py: no such file\n"


def test_a_missing_argument_gives_one_line(monkeypatch, capsys):
    code, error = train(monkeypatch, capsys, "--config", CONFIG)
    assert code == 2
    assert error.count("\n") == 1
    assert "--workdir" in error


def test_a_workdir_that_cannot_be_made_gives_one_line(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, error = train(
        monkeypatch, capsys, "--config", CONFIG, "--workdir", str(tmp_path / "file" / "run"), *TINY
    )
    assert code == 2
    assert "can't write there" in error.splitlines()[-1]


def test_a_mistake_in_a_config_file_is_told_with_its_line(tmp_path):
    config = tmp_path / "mine.py"
    config.write_text("import ml_collections\n\ndef get_config():\n    return undefined\n")
    with pytest.raises(UserError, match=r"mine\.py:4: NameError: name 'undefined' is not defined"):
        load_config(str(config), [])
    config.write_text("def get_config()\n    pass\n")
    with pytest.raises(UserError, match=r"mine\.py:1: SyntaxError: expected ':'"):
        load_config(str(config), [])


@pytest.mark.parametrize("asked", ["flag", "environment", None])
def test_the_causes_of_an_error_are_shown_when_asked_for(tmp_path, capsys, monkeypatch, asked):
    config = tmp_path / "mine.py"
    config.write_text("def get_config():\n    return 1 / 0\n")
    if asked == "environment":
        monkeypatch.setenv("JEPA_JAX_TRACEBACK", "1")
    arguments = ["--config", str(config), "--workdir", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["train", *arguments, *(["--traceback"] * (asked == "flag"))])
    with pytest.raises(SystemExit) as exited:
        train_main()
    assert exited.value.code == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("error: --config ")
    assert ("Traceback" in said) == (asked is not None)
    if asked:
        assert "ZeroDivisionError: division by zero" in said
        assert "return 1 / 0" in said
    assert not (tmp_path / "run").exists()


def test_probe_of_a_folder_without_checkpoint_gives_one_line(tmp_path):
    """In an interpreter of its own: what the imports would print counts too."""
    command = [sys.executable, "-m", "jepa_jax.probe", "--config", "configs/probe/linear.py"]
    done = subprocess.run(
        [*command, f"--checkpoint={tmp_path}"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {tmp_path}: no checkpoint there")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code"), [(UserError, 2), (StoppedRunError, 3), (PreemptedError, 75)]
)
def test_each_way_to_stop_has_its_exit_code(capsys, error, code):
    def command(arguments, overrides):
        raise error("why")

    with pytest.raises(SystemExit) as exited:
        command_line.run_command(command, command_line.make_parser("x", "x"), [])
    assert exited.value.code == code
    assert capsys.readouterr().err == "error: why\n"


def test_overrides_are_parsed_as_python_literals():
    overrides = [
        "--config.data.image_size=56,28",
        "--config.optimizer.lr=2e-3",
        "--config.objective.masks.published=true",
        "--config.data.path=12",  # a string stays one, whatever it looks like
    ]
    config = resolve(load_config(CONFIG, overrides))
    assert config.data.image_size == (56, 28)
    assert config.optimizer.lr == 2e-3
    assert config.objective.masks.published is True
    assert config.data.path == "12"


def test_without_overrides_the_file_is_what_counts():
    assert resolve(load_config(CONFIG, [])) == resolve(load_config_file("fashion_mnist"))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells which signals are handled")
@pytest.mark.parametrize("command", [["jepa_jax.train"], ["jepa_jax", "train"]])
def test_case_06_sigterm_during_the_imports_ends_as_preempted(command):
    arguments = [sys.executable, "-m", *command, "--config=configs/debug.py", "--workdir=/nowhere"]
    with subprocess.Popen(arguments, cwd=REPOSITORY, stderr=subprocess.DEVNULL) as process:
        about = pathlib.Path(f"/proc/{process.pid}")
        mask = 1 << (signal.SIGTERM - 1)
        while process.poll() is None:
            caught = re.search(r"SigCgt:\s*([0-9a-f]+)", (about / "status").read_text())
            if int(caught[1], 16) & mask:
                break
            time.sleep(0.005)
        assert "tensorflow" not in (about / "maps").read_text()  # or it came too late
        process.terminate()
        assert process.wait(60) == 75
