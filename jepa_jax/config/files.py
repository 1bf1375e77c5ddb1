"""Reading the Python files of `configs/`, and overrides from the command line."""

import contextlib
import copy
import hashlib
import importlib.util
import pathlib
import sys
import threading
import traceback
import types
from collections.abc import Iterator, Sequence
from typing import Any

from jepa_jax.config.derived import REPLACES
from jepa_jax.config.schema import Text
from jepa_jax.errors import UserError

# Config files are imported under names in `sys.modules`, which all threads share.
_IMPORTING = threading.RLock()  # of one thread again and again: a config file may read another


def configs_folder() -> pathlib.Path:
    """The folder `configs/`: of the checkout, or as it was installed with the package."""
    package = pathlib.Path(__file__).parent.parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def load_config(path: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The fields that a config file sets, as nested dictionaries, with overrides applied.

    Values are not checked here, but by `config.resolve`, which knows their types.

    Args:
      path: a Python file with a function `get_config`. It imports a file beside it by
        `from .neighbour import get_config`. "configs/X.py" may also be one that came with the
        package.
      overrides: `--config.a.b=value`.

    Raises:
      UserError: there is no such file, it does not run, or an override has no value.
    """
    file = pathlib.Path(path)
    bundled = configs_folder().parent / file
    if not file.is_file() and not file.is_absolute() and file.parts[:1] == ("configs",):
        file = bundled
    if not file.is_file():
        raise UserError(f"--config {path}: no such file")
    try:
        with _IMPORTING, _neighbours(file.resolve().parent) as package:
            config = _run(file, package).get_config().to_dict()
    except UserError:
        raise
    except Exception as error:  # whatever a user's file may raise
        raise UserError(f"--config {_where(error, file)}: {_what(error, file)}") from error
    return override(config, overrides)


def override(config: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The same fields with overrides `--config.a.b=value` applied.

    Raises:
      UserError: an override has no value, or names a field of what is no section.
    """
    config = copy.deepcopy(config)
    for argument in overrides:
        name, equals, text = argument.removeprefix("--config.").partition("=")
        if not equals:
            raise UserError(f"{argument}: needs a value, --config.{name}=VALUE")
        for replaced in REPLACES.get(name, ()):
            _remove(config, replaced.split("."))
        *sections, field = name.split(".")
        node = config
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise UserError(f"{argument}: {section} is a value and has no fields")
        node[field] = Text(text)
    return config


def _remove(config: dict[str, Any], path: list[str]) -> None:
    *sections, field = path
    for section in sections:
        config = config.get(section, {})
        if not isinstance(config, dict):  # a value, which `from_mapping` refuses
            return
    config.pop(field, None)


def _run(file: pathlib.Path, package: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"{package}.{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"--config {file}: must be a Python file, with the ending .py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _neighbours(folder: pathlib.Path) -> Iterator[str]:
    """The name of a package that stands for a folder while its files run.

    They import each other as `from .neighbour import ...`, so that no file beside a config can take
    the place of a library.
    """
    name = f"_configs_{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
    package = types.ModuleType(name)
    package.__path__ = [str(folder)]

    def forget() -> dict[str, types.ModuleType]:
        ours = [m for m in sys.modules if m == name or m.startswith(f"{name}.")]
        return {module: sys.modules.pop(module) for module in ours}

    outer = forget()  # a config file may itself read another one of its folder
    sys.modules[name] = package
    try:
        yield name
    finally:
        forget()  # files are read anew the next time
        sys.modules.update(outer)


def _where(error: Exception, file: pathlib.Path) -> str:
    """The file and line of a user's file that an error comes from."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    folder = file.resolve().parent
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if pathlib.Path(frame.filename).parent == folder
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else str(file)


def _what(error: Exception, file: pathlib.Path) -> str:
    text = f"{type(error).__name__}: {error}"
    missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
    if missing and (file.resolve().parent / f"{missing}.py").is_file():
        text += f"; a file beside it is imported as `from .{missing} import get_config`"
    return text
