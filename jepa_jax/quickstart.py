"""Pretrains on the bundled images, probes, draws: python -m jepa_jax.quickstart

Everything that a longer run does, in minutes on a laptop's CPU: jepa_jax.train, which also draws
pictures, then both probes of the checkpoint beside their controls, on the images that it was
trained on and on the same clothes centred. Run again, it reuses the finished training.
"""

import argparse
import dataclasses
import functools
import pathlib
import sys
import time
from typing import Any

from jepa_jax.command_line import make_parser, run_command
from jepa_jax.config import Config, DataConfig, resolve, resolve_probe, to_dict
from jepa_jax.config.files import load_config
from jepa_jax.data.sources import open_source
from jepa_jax.evaluation.comparison import features_of, probe_each
from jepa_jax.evaluation.results import table_of, write_result
from jepa_jax.evaluation.table import print_table, reduced_of
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
    written = {"network": network, "checkpoint": str(folder), "step": result["step"]}
    probed = functools.partial(compare, objective, encoders, workdir / "probes", written)
    if config.data.source != "cluttered_fashion_mnist":
        return probed(config.data, title="test accuracy")
    centred = dataclasses.replace(config.data, source="fashion_mnist")
    accuracies = {
        "centred": probed(centred, title="centred clothes"),
        **probed(config.data, title="cluttered clothes"),
    }
    print(f"all of it on one page: python -m jepa_jax.report {workdir}", file=sys.stderr)
    return accuracies


def compare(
    objective: Objective,
    encoders: dict[str, Any],
    results_folder: pathlib.Path,
    written: dict[str, Any],
    data: DataConfig,
    *,
    title: str,
) -> dict[str, dict[str, float]]:
    """Probes the encoders and raw pixels on some data, prints the table, and writes the results.

    Args:
      written: of the checkpoint, what stands in the results.
    """
    representations = features_of(data, objective, encoders, batch_size=250, pixels=True)
    results = {}
    for name in _PROBES:
        probe_config = resolve_probe(load_config(f"configs/probe/{name}.py", []))
        results[name] = probe_each(probe_config, representations)
    own = representations["pretrained"]
    num_test, class_names = len(own.test.labels), open_source(data, "test").class_names
    print_table(results, title=title, reduced=reduced_of(representations), num_test=num_test)
    for name, rows in results.items():
        table = table_of(
            rows, class_names=class_names, num_train=len(own.train.labels), num_test=num_test
        )
        write_result(
            results_folder,
            f"{name}-{data.source}-{written['step']}",
            {"protocol": name, "data": to_dict(data)} | written | table,
            per_example={which: result["per_example"] for which, result in rows.items()},
            labels=own.test.labels,
        )
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
