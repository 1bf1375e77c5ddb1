"""Who may import what: data flows one way, and training knows neither data nor objective."""

import ast
import subprocess
import sys

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "jepa_jax"
# Of `objectives/`, what is no objective: the contract, and what the training state is made of.
CONTRACT = {"jepa_jax.objectives.objective", "jepa_jax.objectives.registry"}


def imports_of(path):
    """All modules that a file names in import statements, at its top or within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files(folder):
    found = sorted((PACKAGE / folder).rglob("*.py"))
    assert found
    return found


def outside(folder, allowed):
    """Imports below `folder` that `allowed` refuses: file -> modules."""
    bad = {
        str(path.relative_to(PACKAGE)): sorted(m for m in imports_of(path) if not allowed(m))
        for path in files(folder)
    }
    return {path: modules for path, modules in bad.items() if modules}


def within(module, *packages):
    return any(module == name or module.startswith(f"{name}.") for name in packages)


@pytest.mark.parametrize("folder", ["training", "planning", "evaluation", "reporting"])
def test_training_planning_and_evaluation_name_no_objective(folder):
    def allowed(module):
        return not within(module, "jepa_jax.objectives") or any(
            within(module, name) for name in ("jepa_jax.objectives", *CONTRACT)[1:]
        )

    assert outside(folder, allowed) == {}


@pytest.mark.parametrize("folder", ["training", "planning", "models", "objectives", "batch"])
def test_what_is_not_about_data_does_not_import_it(folder):
    assert outside(folder, lambda module: not within(module, "jepa_jax.data", "tensorflow")) == {}


def test_data_imports_no_objective_and_no_training():
    later = ("jepa_jax.objectives", "jepa_jax.training", "jepa_jax.evaluation", "jepa_jax.models")
    assert outside("data", lambda module: not within(module, *later)) == {}


def test_training_knows_no_evaluation_and_evaluation_no_pictures():
    for folder, later in (("training", "evaluation"), ("evaluation", "reporting")):
        names = {f"jepa_jax.{later}", "jepa_jax.reporting"}
        assert outside(folder, lambda module, names=names: not within(module, *names)) == {}


def test_what_a_batch_holds_is_declared_without_any_of_the_rest():
    allowed = ("jepa_jax.batch", "jepa_jax.config", "jepa_jax.errors")
    ours = outside("batch", lambda m: not within(m, "jepa_jax") or within(m, *allowed))
    assert ours == {}


def test_tensorflow_is_imported_by_data_alone_and_pytorch_by_its_reader_alone():
    for path in files("."):
        name = str(path.relative_to(PACKAGE))
        modules = imports_of(path)
        if not name.startswith("data/"):
            assert not any(within(m, "tensorflow", "tensorflow_datasets") for m in modules), name
        if name != "interop/torch_file.py":
            assert not any(within(m, "torch") for m in modules), name


def test_a_step_is_planned_without_tensorflow():
    program = """
import sys
sys.modules["tensorflow"] = None  # importing it fails
import jax
from jepa_jax.config import resolve
from jepa_jax.config.files import load_config
from jepa_jax.planning.devices import virtual_devices
from jepa_jax.planning.needs import plan
overrides = ["--config.model.depth=1", "--config.model.embed_dim=16", "--config.batch_size=16"]
config = resolve(load_config("configs/fashion_mnist.py", overrides))
needs = plan(config, virtual_devices(2), "v5e", num_images=10_000)
assert needs["steps"] == 24 * 625, needs
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_metrics_are_written_without_importing_pytorch_and_it_can_be_imported_after():
    """tensorboardX would import it."""
    pytest.importorskip("torch")
    program = (
        "import sys, jepa_jax.training.metrics as m\n"
        "print('torch' in sys.modules, m.SummaryWriter)\n"
        "import torch; print(torch.ones(1).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("False <class 'tensorboardX.")
    assert done.stdout.endswith("[1.0]\n")
