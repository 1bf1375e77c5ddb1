"""What all commands share: arguments, logs, exit codes.

Every command ends with one line of JSON on standard output; all else goes to standard error. A
user's mistake is one line, and exit code 2; see `jepa_jax.errors` for the other codes.
"""

import argparse
import contextlib
import json
import logging
import os
import pathlib
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from jepa_jax.errors import PreemptedError, StoppedRunError, UserError


def sigterm_is_preemption() -> None:
    """From here on SIGTERM ends this process at once with the exit code that has it run again.

    For as long as there is nothing to save: training puts its own handler in place of this one.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(PreemptedError.exit_code))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def make_parser(module: str, doc: str) -> argparse.ArgumentParser:
    """A parser whose mistakes are `UserError`s; `run_command` adds the config overrides to it."""
    parser = _Parser(
        prog=f"python -m {module}",
        description=doc,
        epilog="--config.a.b=VALUE overrides a field of the config file.",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--traceback",
        action="store_true",
        help="show where an error arose, and its causes (also: JEPA_JAX_TRACEBACK=1)",
    )
    return parser


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Which encoder to use: --checkpoint and --network."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=pathlib.Path,
        metavar="DIR",
        help="a workdir, one step's folder in it, what jepa_jax.convert wrote, or a Hugging Face "
        "folder or hub id",
    )
    parser.add_argument(
        "--network",
        metavar="NAME",
        help="which of its encoders: of I-JEPA target_encoder, the moving average, which the paper "
        "evaluates, or encoder, the context encoder (default: the first of them that it holds)",
    )


def add_verify_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="read the checkpoint without comparing its files with the digests in its manifest",
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
    argv = sys.argv[1:] if argv is None else argv
    show_traceback = "--traceback" in argv or bool(os.environ.get("JEPA_JAX_TRACEBACK"))
    try:
        arguments, rest = parser.parse_known_args(argv)
        for argument in rest:
            if not argument.startswith("--config."):
                parser.error(f"unknown argument {argument}")
        result = command(arguments, rest)
    except (UserError, StoppedRunError, PreemptedError) as error:
        if show_traceback:
            traceback.print_exc()
        print(f"error: {error}".replace("\n", " "), file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        if show_traceback:
            traceback.print_exc()
        print("error: interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)  # as shells do
    if result is not None:
        print(json.dumps(result))


@contextlib.contextmanager
def new_output(destination: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path to write a file or folder to, which becomes `destination` at the end, or is removed.

    Raises:
      UserError: the destination exists, or can't be written.
    """
    if destination.exists() and not (destination.is_dir() and not any(destination.iterdir())):
        raise UserError(f"{destination}: already exists; remove it, or choose another name")
    temporary = destination.parent / f".{destination.name}.incomplete-{os.getpid()}"
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if destination.is_dir():
            destination.rmdir()
        temporary.rename(destination)
    except OSError as error:
        raise UserError(f"{destination}: can't be written: {error}") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
