"""All commands under one name."""

import subprocess
import sys

import pytest
from conftest import REPOSITORY

from jepa_jax.__main__ import COMMANDS, main


def test_every_module_with_a_command_is_listed():
    package = REPOSITORY / "jepa_jax"
    modules = [*package.glob("*.py"), *package.glob("*/__main__.py")]
    with_main = {
        path.parent.name if path.stem == "__main__" else path.stem
        for path in modules
        if "\ndef main()" in path.read_text()
    }
    assert with_main == set(COMMANDS)


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_without_a_command_all_are_listed(argv, capsys):
    main(argv)
    said = capsys.readouterr().out
    for name, what in COMMANDS.items():
        assert f"  {name} " in said
        assert what in said


def test_an_unknown_command_is_one_line_and_code_2(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["trian", "--workdir=w"])
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "error: no command 'trian'; must be one of quickstart, train, probe, diagnose, report, "
        "visualize, extract, checkpoints, convert, export, data\n"
    )


def test_a_command_gets_the_arguments_behind_its_name(monkeypatch, capsys):
    """With no arguments of its own, so that it refuses them in one line."""
    monkeypatch.setattr(sys, "argv", ["jepa-jax", "convert"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert sys.argv == ["jepa-jax convert"]
    assert capsys.readouterr().err.startswith("error: the following arguments are required")


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "jepa_jax"]
    done = subprocess.run(
        [*command, "export", "--help"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--checkpoint" in done.stdout


def test_a_command_whose_extra_is_not_installed_says_so_in_one_line():
    program = "import sys; sys.modules['tqdm'] = None; import jepa_jax.__main__ as m; m.main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "convert"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: convert needs tqdm: pip install -r requirements.txt, or the package with [train]\n"
    )
