"""What all commands share: arguments, config files with overrides, logs, exit codes.

Every command ends with one line of JSON on standard output; all else goes to standard error. A
user's mistake is one line, and exit code 2; see `jepa_jax.errors` for the other codes.
"""

import argparse
import ast
import contextlib
import importlib.util
import json
import logging
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jepa_jax.config import NETWORKS
from jepa_jax.errors import PreemptedError, StoppedRunError, UserError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(f"{message} (see --help)")


def make_parser(module: str, doc: str) -> argparse.ArgumentParser:
    """A parser whose mistakes are `UserError`s; `run_command` adds the config overrides to it."""
    return _Parser(
        prog=f"python -m {module}",
        description=doc,
        epilog="--config.a.b=VALUE overrides a field of the config file.",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Which encoder to use: --checkpoint and --network."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=pathlib.Path,
        metavar="DIR",
        help="a workdir, one step's folder in it, or what jepa_jax.convert wrote",
    )
    parser.add_argument(
        "--network",
        choices=NETWORKS,
        help="which of its two encoders: the moving average, which the paper evaluates, or the "
        "context encoder (default: target_encoder, or else the only one that is there)",
    )


def parse_size(text: str) -> tuple[int, int]:
    """Height and width from "H,W", or one number for both; the `type` of an argument."""
    try:
        sides = [int(side) for side in text.split(",")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be H,W or one number, in pixels")
    return sides[0], sides[-1]


def check_size(image_size: tuple[int, int], patch_size: int) -> None:
    """Refuses an --image-size that is not a grid of patches.

    Raises:
      UserError: a side is no multiple of the patch size.
    """
    if image_size[0] % patch_size or image_size[1] % patch_size:
        raise UserError(
            f"--image-size {image_size[0]},{image_size[1]}: both must be multiples of the patch "
            f"size, {patch_size}"
        )


def run_command(
    command: Callable[[argparse.Namespace, list[str]], dict[str, Any] | None],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
) -> None:
    """Parses, runs, prints the JSON line, and exits with the contract's code.

    Args:
      command: (parsed arguments, config overrides) -> what the JSON line holds; None for no line,
        in all but the first of several processes.
    """
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING, force=True)
    logging.getLogger("jepa_jax").setLevel(logging.INFO)
    try:
        arguments, rest = parser.parse_known_args(argv)
        for argument in rest:
            if not argument.startswith("--config."):
                parser.error(f"unknown argument {argument}")
        result = command(arguments, rest)
    except (UserError, StoppedRunError, PreemptedError) as error:
        print(f"error: {error}".replace("\n", " "), file=sys.stderr)
        sys.exit(error.exit_code)
    if result is not None:
        print(json.dumps(result))


@contextlib.contextmanager
def new_output(destination: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path to write a file or folder to, which becomes `destination` at the end, or is removed.

    Raises:
      UserError: the destination exists, or can't be written.
    """
    if destination.exists() and not (destination.is_dir() and not any(destination.iterdir())):
        raise UserError(f"{destination}: is there already; remove it, or choose another name")
    temporary = destination.parent / f".{destination.name}.incomplete-{os.getpid()}"
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if destination.is_dir():
            destination.rmdir()
        temporary.rename(destination)
    except OSError as error:
        raise UserError(f"{destination}: can't be written: {error}") from None
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def load_config(path: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The fields of a config file, as nested dictionaries, with overrides applied.

    Values are not checked here, but by `config.resolve`, which knows their types.

    Args:
      path: a Python file with a function `get_config`. It may import the files beside it.
      overrides: `--config.a.b=value`; the value is a Python literal, or else a string.

    Raises:
      UserError: there is no such file, it does not run, or an override has no value.
    """
    if not pathlib.Path(path).is_file():
        raise UserError(f"--config {path}: no such file")
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
    if spec is None:
        raise UserError(f"--config {path}: must be a Python file, with the ending .py")
    module = importlib.util.module_from_spec(spec)
    try:
        with _importable(pathlib.Path(path).resolve().parent):
            spec.loader.exec_module(module)
            config = module.get_config().to_dict()
    except Exception as error:  # whatever a user's file may raise
        raise UserError(f"--config {path}: {type(error).__name__}: {error}") from error
    for override in overrides:
        name, equals, text = override.removeprefix("--config.").partition("=")
        if not equals:
            raise UserError(f"{override}: needs a value, --config.{name}=VALUE")
        *sections, field = name.split(".")
        node = config
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise UserError(f"{override}: {section} is a value and has no fields")
        node[field] = text if isinstance(node.get(field), str) else _parse_value(text)
    return config


@contextlib.contextmanager
def _importable(folder: pathlib.Path) -> Iterator[None]:
    """The Python files of a folder can be imported by their bare names, before all others."""
    others = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        # Forgotten again: another folder may have a file of the same name.
        for name in set(sys.modules) - others:
            file = getattr(sys.modules[name], "__file__", None)
            if file and pathlib.Path(file).parent == folder:
                del sys.modules[name]


def _parse_value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
