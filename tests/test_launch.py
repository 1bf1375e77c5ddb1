"""The scripts in launch/, without installing anything: `python`, `uv` and `pip` are recorded."""

import os
import pathlib
import shutil
import subprocess

import pytest
from conftest import REPOSITORY

SCRIPTS = ("quickstart.sh", "test.sh")
TOOLS = ("bash", "cat", "cksum", "cut", "dirname", "touch", "mkdir", "rm", "printf", "env", "cp")

# Stands for python: answers the scripts' questions, "makes" environments, writes down the rest.
FAKE_PYTHON = """#!/usr/bin/env bash
if [ "$1" = -c ]; then
  case "$2" in *ensurepip*) exit "${NO_ENSUREPIP:-0}" ;; *) exit "${TOO_OLD:-0}" ;; esac
fi
echo "python $*" >>"$CALLS"
if [ "$2" = venv ]; then mkdir -p .venv/bin && cp "$0" .venv/bin/python; fi
if [ "$3" = install ]; then exit "${INSTALL_FAILS:-0}"; fi
"""
FAKE_UV = """#!/usr/bin/env bash
echo "uv $*" >>"$CALLS"
if [ "$1" = venv ]; then
  mkdir -p .venv/bin && cp "$(dirname "$0")/python3" .venv/bin/python
fi
"""


@pytest.fixture
def checkout(tmp_path):
    """What the scripts need of the repository, in a folder with a space in its name."""
    folder = tmp_path / "a checkout"
    shutil.copytree(REPOSITORY / "launch", folder / "launch")
    for name in ("requirements.txt", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, folder)
    return folder


@pytest.fixture
def machine(tmp_path):
    """A PATH with a few tools and the fake python3; `uv` can be put there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        (folder / tool).symlink_to(shutil.which(tool))
    write_tool(folder / "python3", FAKE_PYTHON)
    return folder


def write_tool(path: pathlib.Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def call(checkout, machine, script, *arguments, **environment):
    """Runs a script from another folder with an empty HOME; returns it, and what was called."""
    calls = checkout / "calls"
    calls.unlink(missing_ok=True)
    done = subprocess.run(
        ["bash", str(checkout / "launch" / script), *arguments],
        cwd=machine,
        env={"PATH": str(machine), "CALLS": str(calls), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done, calls.read_text().splitlines() if calls.exists() else []


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_first_call_installs_and_the_second_does_not(checkout, machine, script):
    done, calls = call(checkout, machine, script, "--x=a b")
    assert done.returncode == 0, done.stderr
    assert [line.split()[2] for line in calls[:2]] == ["venv", "pip"]
    more = {"quickstart.sh": "", "test.sh": " -e .[test]"}[script]
    assert calls[-2].endswith("-r requirements.txt" + more)
    module = {
        "quickstart.sh": "jepa_jax.quickstart",
        "test.sh": "pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder",
    }[script]
    assert calls[-1] == f"python -m {module} --x=a b"
    done, calls = call(checkout, machine, script)
    assert calls == [f"python -m {module}"]


def test_both_scripts_share_one_environment(checkout, machine):
    call(checkout, machine, "quickstart.sh")
    call(checkout, machine, "test.sh")
    for script in SCRIPTS:
        assert len(call(checkout, machine, script)[1]) == 1


def test_changed_requirements_are_installed(checkout, machine):
    call(checkout, machine, "quickstart.sh")
    with (checkout / "requirements.txt").open("a") as file:
        file.write("another\n")
    _, calls = call(checkout, machine, "quickstart.sh")
    assert any("pip install" in line for line in calls)


def test_an_installation_that_failed_is_done_again(checkout, machine):
    done, _ = call(checkout, machine, "quickstart.sh", INSTALL_FAILS="1")
    assert done.returncode != 0
    done, calls = call(checkout, machine, "quickstart.sh")
    assert done.returncode == 0
    assert any("pip install" in line for line in calls)


def test_uv_is_used_when_there_is_one(checkout, machine):
    write_tool(machine / "uv", FAKE_UV)
    done, calls = call(checkout, machine, "quickstart.sh")
    assert done.returncode == 0, done.stderr
    assert [line.split()[:2] for line in calls[:2]] == [["uv", "venv"], ["uv", "pip"]]


def test_uv_makes_up_for_a_missing_python(checkout, machine):
    write_tool(machine / "uv", FAKE_UV)
    _, calls = call(checkout, machine, "quickstart.sh", "--dry-run", TOO_OLD="1")
    assert calls == []
    _, calls = call(checkout, machine, "quickstart.sh", TOO_OLD="1")
    assert "--python 3.12" in calls[0]


@pytest.mark.parametrize(
    ("environment", "hint"),
    [({"TOO_OLD": "1"}, "no Python 3.11"), ({"NO_ENSUREPIP": "1"}, "apt-get install python3-venv")],
)
def test_what_is_missing_is_said_in_one_line(checkout, machine, environment, hint):
    done, calls = call(checkout, machine, "test.sh", **environment)
    assert done.returncode == 2
    assert calls == []
    assert hint in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_dry_run_prints_and_does_nothing(checkout, machine, script):
    done, calls = call(checkout, machine, script, "--dry-run", "--workdir=a b")
    assert done.returncode == 0
    assert calls == []
    assert not (checkout / ".venv").exists()
    printed = [line for line in done.stderr.splitlines() if line.startswith("+ ")]
    assert "-m venv" in printed[0]
    assert "pip install" in printed[1]
    assert printed[2].endswith(r"--workdir=a\ b")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_how(checkout, machine, script):
    done, calls = call(checkout, machine, script, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: bash launch/{script}")
    assert calls == []


def test_shellcheck_finds_nothing():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    scripts = [*(REPOSITORY / "launch").glob("*.s[hb]*"), REPOSITORY / ".ci" / "run"]
    done = subprocess.run(
        ["shellcheck", "-x", *map(str, scripts)], cwd=REPOSITORY, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout.decode()


def test_continuous_integration_can_be_run_from_anywhere():
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)
