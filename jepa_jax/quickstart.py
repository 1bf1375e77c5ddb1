"""Pretrains on the bundled images, probes, draws: python -m jepa_jax.quickstart

Everything that a longer run does, in minutes on a laptop's CPU: jepa_jax.train, then both probes of
the checkpoint beside their controls, then pictures. Run again, it reuses the finished training.
"""

import argparse
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np

from jepa_jax.command_line import load_config, make_parser, run_command
from jepa_jax.config import Config, resolve, resolve_probe
from jepa_jax.data.pipeline import eval_batches, train_batches
from jepa_jax.data.sources import open_source
from jepa_jax.evaluation.comparison import features_of, random_target
from jepa_jax.evaluation.pictures import curves_picture, mask_picture, pca_picture
from jepa_jax.evaluation.probes import probe
from jepa_jax.objectives.ijepa import make_objective
from jepa_jax.probe import print_table
from jepa_jax.train import pretrain
from jepa_jax.training import checkpoint
from jepa_jax.training.metrics import read_metrics

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
_PROBES = ("knn", "linear")
_PCA_IMAGES = 10  # one of each class


def run(config: Config, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains, probes and draws; returns the accuracies by protocol and representation."""
    result = pretrain(config, workdir)
    objective = make_objective(config)
    folder = checkpoint.find(workdir)
    targets = {
        "pretrained": checkpoint.restore_network(folder, "target_encoder", objective),
        "random_init": random_target(config, objective),
    }
    print(f"step {result['step']}: probing the target encoder and its controls", file=sys.stderr)
    accuracies = {}
    features = features_of(config.data, objective, targets, batch_size=250, pixels=True)
    for name in _PROBES:
        probe_config = resolve_probe(load_config(str(CONFIGS / "probe" / f"{name}.py"), []))
        accuracies[name] = {
            representation: probe(probe_config, *split)["accuracy"]
            for representation, split in features.items()
        }
    draw(config, workdir, targets)
    print_table(accuracies)
    return accuracies


def draw(config: Config, workdir: pathlib.Path, targets: dict[str, Any]) -> None:
    """Writes the pictures of a run into its workdir."""
    objective, grid = make_objective(config), config.grid
    train_source = open_source(config.data, "train")
    batch = next(train_batches(config, train_source, start_step=0, end_step=1))
    mask_picture(workdir / "masks.png", config, batch)
    curves_picture(workdir / "curves.png", read_metrics(workdir / "metrics.jsonl"))

    # The components are found over many images, and the first of each class are shown.
    test_source = open_source(config.data, "test")
    first = np.unique(test_source.labels, return_index=True)[1][:_PCA_IMAGES]
    images = next(eval_batches(config.data, test_source, index=first, batch_size=len(first)))
    encode = jax.jit(objective.encode)
    tokens = {
        "random init": np.asarray(encode(targets["random_init"], images)),
        "pretrained": np.asarray(encode(targets["pretrained"], images)),
    }
    pca_picture(workdir / "feature_pca.png", images, tokens, grid, config.data)
    names = ", ".join(str(workdir / f"{n}.png") for n in ("masks", "curves", "feature_pca"))
    print(f"pictures: {names}", file=sys.stderr)


def main() -> None:
    start = time.monotonic()
    parser = make_parser("jepa_jax.quickstart", __doc__)
    parser.add_argument("--config", default=str(CONFIGS / "fashion_mnist.py"), help="%(default)s")
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
