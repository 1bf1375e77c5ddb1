"""The notebooks of docs/, cell by cell in this process: a kernel of their own takes too long."""

import sys

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from conftest import REPOSITORY
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler


def code_cells(name):
    notebook = nbformat.read(REPOSITORY / "docs" / "notebooks" / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture
def in_notebooks(monkeypatch):
    """In the folder that Jupyter starts a notebook in."""
    monkeypatch.chdir(REPOSITORY / "docs" / "notebooks")
    monkeypatch.setattr("sys.path", list(sys.path))
    with matplotlib.rc_context(), plt.ioff():
        matplotlib.use("agg")
        yield
    plt.close("all")


def test_first_look_runs_on_a_checkpoint(in_notebooks, monkeypatch, small):
    monkeypatch.setenv("JEPA_JAX_WORKDIR", str(small.folder))
    names = {}
    for cell in code_cells("first_look"):
        exec(cell.source, names)
    assert names["name"] == "pretrained"
    assert names["tokens"].shape == (10, 16, 16)
    assert names["colours"].shape == (10, 4, 4, 3)
    assert [len(plt.figure(number).axes) for number in plt.get_fignums()] == [20, 21]

    pixels = {split: names[f"{split}_pixels"] for split in ("train", "test")}
    rows = {split: names["pooled"](names["params"], x) for split, x in pixels.items()}
    scaler = StandardScaler().fit(rows["train"])
    known = KNeighborsClassifier(5).fit(scaler.transform(rows["train"]), names["train_labels"])
    expected = known.score(scaler.transform(rows["test"]), names["test_labels"])
    assert names["accuracies"]["pretrained"] == pytest.approx(expected, abs=0.01)  # ties
    assert set(names["accuracies"]) == {"pretrained", "at its start", "raw pixels"}


def test_first_look_takes_a_random_encoder_where_there_is_no_checkpoint(
    in_notebooks, monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("JEPA_JAX_WORKDIR", str(tmp_path / "nothing"))
    names = {}
    for cell in code_cells("first_look")[:4]:
        exec(cell.source, names)
    assert capsys.readouterr().out == "random: 3 blocks of width 128, grid (8, 8)\n"
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    given, start = (names["features"](names[which], pixels) for which in ("params", "start"))
    np.testing.assert_array_equal(given, start)


def test_the_committed_outputs_of_first_look_are_pictures_and_numbers_without_errors():
    outputs = [output for cell in code_cells("first_look") for output in cell.outputs]
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert kinds.count("image/png") == 2
    assert "pretrained" in outputs[-1]["text"]
    assert (REPOSITORY / "docs" / "notebooks" / "first_look.ipynb").stat().st_size < 200_000
