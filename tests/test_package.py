"""What the package promises to who installs it: dependencies, public names, version, types."""

import re
import subprocess
import sys
import tomllib

import pytest
from conftest import REPOSITORY

import jepa_jax

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def normal(requirement):
    """One spelling of quotes; no comment."""
    return requirement.split("  #")[0].strip().replace("'", '"')


def listed(file):
    lines = (REPOSITORY / file).read_text().splitlines()
    return sorted(normal(line) for line in lines if line and not line.startswith("#"))


def extra(name):
    """An extra's requirements, with those of the extras that it names."""
    found = set()
    for requirement in PROJECT["optional-dependencies"][name]:
        if names := re.fullmatch(r"jepa-jax\[(.*)\]", requirement):
            found = found.union(*map(extra, names[1].split(",")))
        else:
            found.add(normal(requirement))
    return found


def test_the_base_and_the_extras_are_the_lists_of_the_requirements_files():
    base = set(map(normal, PROJECT["dependencies"]))
    assert sorted(base | extra("train") | extra("eval")) == listed("requirements.txt")
    assert sorted(extra("interop")) == listed("requirements-interop.txt")
    assert extra("all") == extra("train") | extra("eval") | extra("interop")


def test_load_encoder_works_with_the_base_dependencies_alone(small):
    """All that only extras install is hidden."""
    names = [re.match(r"[\w-]+", requirement)[0] for requirement in extra("all")]
    modules = {name.replace("-", "_") for name in names} | {"sklearn", "tensorflow"}
    program = (
        "import sys\n"
        f"for name in {sorted(modules)}: sys.modules[name] = None\n"
        "import jepa_jax, numpy as np\n"
        f"encode, params = jepa_jax.load_encoder({str(small.folder)!r})\n"
        "images = encode.preprocess(np.zeros((1, 28, 28, 3), np.uint8))\n"
        "print(encode(params, images).shape)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("(1, 16, 16)\n", 0), done.stderr


def test_the_public_names_are_listed_and_there():
    assert dir(jepa_jax) == [
        "Encoder",
        "UserError",
        "__version__",
        "create_encoder",
        "list_models",
        "load_encoder",
    ]
    for name in dir(jepa_jax):
        assert getattr(jepa_jax, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'load_decoder'"):
        jepa_jax.load_decoder  # noqa: B018


def test_jax_is_imported_only_where_the_encoder_is_asked_for():
    program = "import sys, jepa_jax; dir(jepa_jax); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True)
    assert done.stdout == b"False\n"


def test_a_users_mistake_is_a_value_error_like_those_of_the_functions():
    assert issubclass(jepa_jax.UserError, ValueError)
    with pytest.raises(ValueError, match="nowhere"):
        jepa_jax.load_encoder("nowhere")


def test_the_version_is_a_version_and_written_once():
    assert re.fullmatch(r"\d+\.\d+\.\d+", jepa_jax.__version__)
    assert "version" not in PROJECT
    assert "version" in PROJECT["dynamic"]


def test_type_checkers_of_other_projects_may_read_its_annotations():
    assert (REPOSITORY / "jepa_jax" / "py.typed").exists()
