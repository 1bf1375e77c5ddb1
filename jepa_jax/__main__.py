"""All commands under one name: jepa-jax COMMAND ..., or python -m jepa_jax COMMAND ...

The same as python -m jepa_jax.COMMAND ...
"""

import importlib
import sys
from collections.abc import Sequence

from jepa_jax.command_line import sigterm_is_preemption

# Written out, so that the list is printed without importing what the commands need.
COMMANDS = {
    "quickstart": "pretrains on bundled images, probes, draws: minutes on a CPU",
    "train": "pretrains a model, or with --plan says what that would need",
    "probe": "measures a checkpoint's features with k-NN and linear classifiers",
    "diagnose": "measures how a checkpoint's features fill their space: ranks, spread, spectrum",
    "report": "writes a page about one run or several, with pictures, to look at in a browser",
    "visualize": "draws what a model gets (views, masks, crops) and a checkpoint's features",
    "extract": "writes the features of images to a file",
    "checkpoints": "lists and verifies the checkpoints of a run",
    "convert": "reads and writes other libraries' checkpoints",
    "export": "turns an encoder into a program that runs without this package",
    "data": "packs images into a few large files for pods, or checks every image",
}


def usage() -> str:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:{width}}  {what}" for name, what in COMMANDS.items())
    return (
        f"usage: jepa-jax COMMAND [argument ...]\n\ncommands:\n{listed}\n\n"
        "jepa-jax COMMAND --help describes its arguments."
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command that the first argument names, with the others as its own."""
    command, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        print(usage())
    elif command == "--version":
        from jepa_jax import __version__

        print(__version__)
    elif command not in COMMANDS:
        allowed = ", ".join(COMMANDS)
        print(f"error: no command {command!r}; must be one of {allowed}", file=sys.stderr)
        sys.exit(2)
    else:
        sys.argv = [f"jepa-jax {command}", *arguments]
        if command == "train":
            sigterm_is_preemption()
        try:
            name = f"jepa_jax.{command}"
            module = importlib.import_module(f"{name}.__main__" if command == "data" else name)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("jepa_jax"):
                raise
            # The base dependencies alone are there.
            needs = f"{command} needs {error.name}: pip install -r requirements.txt"
            print(f"error: {needs}, or the package with [train]", file=sys.stderr)
            sys.exit(2)
        module.main()


if __name__ == "__main__":
    main()
