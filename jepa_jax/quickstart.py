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

from jepa_jax.batch.masks import MultiBlock
from jepa_jax.command_line import make_parser, run_command
from jepa_jax.config import Config, resolve, resolve_probe
from jepa_jax.config.files import load_config
from jepa_jax.data.pipeline import eval_batches
from jepa_jax.data.sources import open_source
from jepa_jax.data.stream import make_stream
from jepa_jax.evaluation.comparison import features_of, probe_each
from jepa_jax.evaluation.pictures import curves_picture, mask_picture, pca_picture
from jepa_jax.evaluation.report import print_table
from jepa_jax.objectives.objective import initial_encoder
from jepa_jax.objectives.registry import make_objective
from jepa_jax.train import pretrain
from jepa_jax.training import checkpoint
from jepa_jax.training.metrics import read_metrics

_PROBES = ("knn", "linear")
_PCA_IMAGES = 10  # one of each class


def run(config: Config, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains, probes and draws; returns the accuracies by protocol and representation."""
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
    representations = features_of(config.data, objective, encoders, batch_size=250, pixels=True)
    for name in _PROBES:
        probe_config = resolve_probe(load_config(f"configs/probe/{name}.py", []))
        results = probe_each(probe_config, representations)
        accuracies[name] = {which: result["accuracy"] for which, result in results.items()}
    draw(config, workdir, encoders)
    print_table(accuracies, representations)
    return accuracies


def draw(config: Config, workdir: pathlib.Path, encoders: dict[str, Any]) -> None:
    """Writes the pictures of a run into its workdir."""
    objective, grid = make_objective(config), config.grid
    train_source = open_source(config.data, "train")
    stream = make_stream(
        objective.needs, config.data, train_source, seed=config.seed, batch_size=config.batch_size
    )
    batch = next(stream.batches(0, 1, None))
    if isinstance(objective.needs.masks, MultiBlock):
        mask_picture(workdir / "masks.png", config, batch)
    curves_picture(workdir / "curves.png", read_metrics(workdir / "metrics.jsonl"))

    # The components are found over many images, and the first of each class are shown.
    test_source = open_source(config.data, "test")
    assert test_source.labels is not None  # or the probes would have said so
    first = np.unique(test_source.labels, return_index=True)[1][:_PCA_IMAGES]
    images = next(eval_batches(config.data, test_source, index=first, batch_size=len(first)))
    encode = jax.jit(objective.encode)
    tokens = {
        "random init": np.asarray(encode(encoders["random_init"], images)),
        "pretrained": np.asarray(encode(encoders["pretrained"], images)),
    }
    pca_picture(workdir / "feature_pca.png", images, tokens, grid, config.data)
    names = ", ".join(str(path) for path in sorted(workdir.glob("*.png")))
    print(f"pictures: {names}", file=sys.stderr)


def main() -> None:
    start = time.monotonic()
    parser = make_parser("jepa_jax.quickstart", __doc__)
    parser.add_argument("--config", default="configs/fashion_mnist.py", help="%(default)s")
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
