"""The package as it is installed: built, put elsewhere, and run from another folder."""

import json
import os
import subprocess
import sys
import tomllib
import zipfile

import pytest
from conftest import REPOSITORY


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of what git tracks or would, so that no build folder is left here."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if name.startswith(("jepa_jax/", "configs/")) or "/" not in name:
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if (REPOSITORY / name).is_file():
                target.write_bytes((REPOSITORY / name).read_bytes())
    program = (
        "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(folder)], cwd=source, capture_output=True, check=True
    )
    (path,) = folder.glob("*.whl")
    return path


def test_every_folder_of_the_package_is_in_the_list(wheel):
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        listed = set(tomllib.load(file)["tool"]["setuptools"]["packages"])
    folders = {
        ".".join(path.parent.relative_to(REPOSITORY).parts)
        for path in (REPOSITORY / "jepa_jax").rglob("*.py")
        if "__pycache__" not in path.parts
    }
    assert listed == folders | {"jepa_jax.configs", "jepa_jax.configs.probe"}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for path in (REPOSITORY / "configs").rglob("*.py"):
        assert f"jepa_jax/{path.relative_to(REPOSITORY)}" in names
    assert {"jepa_jax/py.typed", "jepa_jax/data/bundled/fashion_mnist/fashion_mnist.npz"} <= names


def test_an_installed_package_runs_the_quickstart_from_another_folder(wheel, tmp_path):
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)  # as an installer does with a pure wheel
    environment = {**os.environ, "PYTHONPATH": str(installed), "XLA_FLAGS": ""}
    options = {"cwd": elsewhere, "env": environment, "capture_output": True, "text": True}
    where = subprocess.run(
        [sys.executable, "-c", "import jepa_jax; print(jepa_jax.__file__)"], **options, check=True
    )
    assert where.stdout.startswith(str(installed))
    fields = [
        "--config.epochs=1",
        "--config.data.subset.per_class=100",
        "--config.batch_size=500",  # two steps
        "--config.data.source=fashion_mnist",  # which is probed once, cluttered ones twice
        "--config.data.image_size=(16,16)",
        "--config.model.patch_size=8",
        "--config.model.embed_dim=8",
        "--config.model.depth=1",
        "--config.objective.predictor.embed_dim=8",
        "--config.objective.predictor.depth=1",
        "--config.objective.masks.context_tokens=1",
        "--config.objective.masks.num_targets=1",
        "--config.objective.masks.target_scale=(0.25,0.25)",
        "--config.logging.knn_every_steps=None",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "jepa_jax", "quickstart", *fields], **options, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result.keys() >= {"knn", "linear", "seconds", "workdir"}
    assert (elsewhere / result["workdir"] / "checkpoints" / "2").is_dir()
