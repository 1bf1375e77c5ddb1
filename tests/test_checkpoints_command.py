"""Listing and verifying the checkpoints of a workdir, whose files are made up here."""

import json
import shutil
import sys

import pytest

from jepa_jax import checkpoints
from jepa_jax.training.manifest import write_manifest


@pytest.fixture
def workdir(tmp_path):
    """Two good ones, one of an older format, without its manifest, set aside, unfinished."""
    for name, format_number, whole in [
        ("2", 2, False),
        ("4", 3, True),
        ("6", 3, True),
        ("8", 3, False),
        ("5.corrupt", 3, True),
        ("9.orbax-checkpoint-tmp", 3, False),
    ]:
        folder = tmp_path / "checkpoints" / name
        (folder / "config").mkdir(parents=True)
        (folder / "config" / "metadata").write_text(json.dumps({"format": format_number}))
        (folder / "params").mkdir()
        (folder / "params" / "d").write_bytes(bytes(range(200)))
        if whole:
            write_manifest(folder)
    return tmp_path


def run(monkeypatch, capsys, *arguments):
    """Exit code, the JSON line, and what was told."""
    monkeypatch.setattr(sys, "argv", ["checkpoints", *map(str, arguments)])
    code = 0
    try:
        checkpoints.main()
    except SystemExit as stopped:
        code = stopped.code
    said = capsys.readouterr()
    return code, json.loads(said.out.splitlines()[-1]) if said.out else None, said.err


def health(line):
    return {row["name"]: row["health"] for row in line["checkpoints"]}


@pytest.mark.parametrize("verb", ["list", "verify"])
def test_all_kinds_of_health_are_told_and_none_is_damaged(workdir, monkeypatch, capsys, verb):
    code, line, said = run(monkeypatch, capsys, verb, workdir)
    assert code == 0
    assert health(line) == {
        "8": "incomplete",
        "6": "good",
        "4": "good",
        "2": "unverified",
        "5.corrupt": "set aside",
        "9.orbax-checkpoint-tmp": "unfinished",
    }
    assert line["damaged"] == []
    assert "incomplete: manifest.json is missing" in said


def test_a_changed_byte_is_found_by_verify_with_code_3_and_its_file(workdir, monkeypatch, capsys):
    path = workdir / "checkpoints" / "6" / "params" / "d"
    path.write_bytes(b"x" + path.read_bytes()[1:])
    assert run(monkeypatch, capsys, "list", workdir)[0] == 0  # its size is right
    code, line, said = run(monkeypatch, capsys, "verify", workdir)
    assert (code, line["damaged"]) == (3, ["6"])
    assert "damaged: params/d has another SHA-256" in said


def test_a_file_of_another_size_is_found_by_list_too(workdir, monkeypatch, capsys):
    (workdir / "checkpoints" / "4" / "params" / "d").write_bytes(b"")
    code, line, _ = run(monkeypatch, capsys, "list", workdir)
    assert (code, line["damaged"]) == (3, ["4"])


def test_a_folder_without_checkpoints_is_refused(workdir, monkeypatch, capsys):
    shutil.rmtree(workdir / "checkpoints")
    code, line, said = run(monkeypatch, capsys, "verify", workdir)
    assert (code, line) == (2, None)
    assert "no checkpoint there" in said
