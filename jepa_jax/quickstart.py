"""Pretrains on the bundled images, probes, draws: python -m jepa_jax.quickstart

Everything that a longer run does, in minutes on a laptop's CPU: jepa_jax.train, then both probes of
the checkpoint beside their controls, then pictures. Run again, it reuses the finished training.
"""

import argparse
import pathlib
import sys
import time
from typing import Any

from jepa_jax.command_line import make_parser, run_command
from jepa_jax.config import Config, resolve, resolve_probe
from jepa_jax.config.files import load_config
from jepa_jax.evaluation.comparison import features_of
from jepa_jax.evaluation.probes import probe
from jepa_jax.objectives.objective import initial_encoder
from jepa_jax.objectives.registry import make_objective
from jepa_jax.probe import print_table
from jepa_jax.train import pretrain
from jepa_jax.training import checkpoint

_PROBES = ("knn", "linear")


def run(config: Config, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains and probes; returns the accuracies by protocol and representation."""
    result = pretrain(config, workdir)
    objective = make_objective(config)
    folder = checkpoint.find(workdir)
    network = next(iter(objective.encoders))
    encoders = {
        "pretrained": checkpoint.restore_encoder(folder, network, objective),
        "random_init": initial_encoder(objective, config.seed),
    }
    print(f"step {result['step']}: probing the {network} and its controls", file=sys.stderr)
    accuracies = {}
    features = features_of(config.data, objective, encoders, batch_size=250, pixels=True)
    for name in _PROBES:
        probe_config = resolve_probe(load_config(f"configs/probe/{name}.py", []))
        accuracies[name] = {
            representation: probe(probe_config, *split)["accuracy"]
            for representation, split in features.items()
        }
    names = ", ".join(str(path) for path in sorted(workdir.glob("*.png")))
    print(f"pictures: {names}", file=sys.stderr)
    print_table(accuracies)
    return accuracies


def main() -> None:
    start = time.monotonic()
    parser = make_parser("jepa_jax.quickstart", __doc__)
    parser.add_argument("--config", default="configs/quickstart.py", help="%(default)s")
    parser.add_argument(
        "--workdir", default="runs/quickstart", type=pathlib.Path, help="%(default)s"
    )

    def command(arguments: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
        config = resolve(load_config(arguments.config, overrides))
        accuracies = run(config, arguments.workdir)
        return {
            **accuracies,
            "seconds": round(time.monotonic() - start, 1),
            "workdir": str(arguments.workdir),
        }

    run_command(command, parser)


if __name__ == "__main__":
    main()
