"""Pretrains on the bundled images, probes, draws: python -m jepa_jax.quickstart

Everything that a longer run does, in minutes on a laptop's CPU: jepa_jax.train, which also draws
pictures, then both probes of the checkpoint beside their controls, on the images that it was
trained on and on the same clothes centred. Run again, it reuses the finished training.
"""

import argparse
import dataclasses
import pathlib
import sys
import time
from typing import Any

from jepa_jax.command_line import make_parser, run_command
from jepa_jax.config import Config, DataConfig, resolve, resolve_probe
from jepa_jax.config.files import load_config
from jepa_jax.evaluation.comparison import features_of, probe_each
from jepa_jax.evaluation.report import print_table, reduced_of
from jepa_jax.objectives.objective import Objective, initial_encoder
from jepa_jax.objectives.registry import make_objective
from jepa_jax.train import pretrain
from jepa_jax.training import checkpoint

_PROBES = ("knn", "linear")


def run(config: Config, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains and probes.

    Returns:
      Accuracies by protocol and representation; of cluttered images also "centred", the same on
      the centred ones.
    """
    result = pretrain(config, workdir)
    objective = make_objective(config)
    folder = checkpoint.find(workdir, checkpoint.network_items)
    network = next(iter(objective.encoders))
    encoders = {
        "pretrained": checkpoint.restore_encoder(folder, network, objective),
        "random_init": initial_encoder(objective, config.seed),
    }
    names = ", ".join(str(path) for path in sorted(workdir.glob("*.png")))
    print(f"pictures: {names}", file=sys.stderr)
    print(f"step {result['step']}: probing the {network} and its controls", file=sys.stderr)
    if config.data.source != "cluttered_fashion_mnist":
        return compare(config.data, objective, encoders, title="test accuracy")
    centred = dataclasses.replace(config.data, source="fashion_mnist")
    return {
        "centred": compare(centred, objective, encoders, title="centred clothes"),
        **compare(config.data, objective, encoders, title="cluttered clothes"),
    }


def compare(
    data: DataConfig, objective: Objective, encoders: dict[str, Any], *, title: str
) -> dict[str, dict[str, float]]:
    """Probes the encoders and raw pixels on some data, and prints the table."""
    representations = features_of(data, objective, encoders, batch_size=250, pixels=True)
    results = {}
    for name in _PROBES:
        probe_config = resolve_probe(load_config(f"configs/probe/{name}.py", []))
        results[name] = probe_each(probe_config, representations)
    num_test = len(representations["pretrained"].test.labels)
    print_table(results, title=title, reduced=reduced_of(representations), num_test=num_test)
    return {
        name: {which: result["accuracy"] for which, result in rows.items()}
        for name, rows in results.items()
    }


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
