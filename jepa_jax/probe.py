"""Probes a checkpoint: python -m jepa_jax.probe --config configs/probe/knn.py --checkpoint DIR

DIR is a workdir of jepa_jax.train, whose newest checkpoint is taken, one step's folder in it, or
what jepa_jax.convert wrote. Only the target encoder is read (or the context encoder, with --network
encoder), and the configuration that it was trained with. Or DIR is a Hugging Face folder or hub id,
which doesn't say what images to probe it on: --config.data.path=PHOTOS does.
"""

import argparse
import os
from typing import Any

from jepa_jax.command_line import (
    add_checkpoint_arguments,
    add_verify_argument,
    make_parser,
    run_command,
)
from jepa_jax.config import ProbeConfig, probe_data, resolve_probe
from jepa_jax.config.files import load_config
from jepa_jax.encoder import find_encoder, is_huggingface, load_encoder
from jepa_jax.evaluation.comparison import features_of, probe_each
from jepa_jax.evaluation.report import print_table
from jepa_jax.interop.hub import local_path
from jepa_jax.objectives.objective import initial_encoder
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training import checkpoint
from jepa_jax.training.compilation import use_compilation_cache


def probe_checkpoint(
    config: ProbeConfig, path: str | os.PathLike, network: str | None = None, *, verify: bool = True
) -> dict[str, Any]:
    """Accuracy of an encoder in a checkpoint, and of its controls.

    Args:
      path: workdir, folder of one checkpoint, or a Hugging Face folder or hub id.
      network: which encoder; None: see `checkpoint.choose_encoder`.
      verify: compare the files that are read with the digests that were taken when they were saved.

    Raises:
      UserError: the checkpoint can't be read, or the data don't suit the probe.
    """
    path = local_path(path)
    use_compilation_cache()
    if is_huggingface(path):
        folder = path
        encode, pretrained = load_encoder(path, network=network)
        trained, network = encode.config, encode.network
        objective, data = make_objective(trained), probe_data(config, trained)
    else:
        folder = find_encoder(path, network, verify=verify)
        trained = checkpoint.read_config(folder)
        objective = make_objective(trained)
        network = checkpoint.choose_encoder(folder, network, objective)
        data = probe_data(config, trained)
        pretrained = checkpoint.restore_encoder(folder, network, objective)
    encoders = {"pretrained": pretrained}
    if config.controls:
        encoders["random_init"] = initial_encoder(objective, trained.seed)
    representations = features_of(
        data, objective, encoders, batch_size=config.batch_size, pixels=config.controls
    )
    results = probe_each(config, representations)
    accuracies = {name: result["accuracy"] for name, result in results.items()}
    print_table({config.protocol: accuracies}, representations)
    own = results.pop("pretrained")
    return {
        "protocol": config.protocol,
        **own,
        "controls": {name: result["accuracy"] for name, result in results.items()},
        "reduced": {name: r.reduced for name, r in representations.items() if r.reduced},
        "network": network,
        "checkpoint": str(folder),
    }


def main() -> None:
    parser = make_parser("jepa_jax.probe", __doc__)
    parser.add_argument("--config", required=True, help="a file in configs/probe/")
    add_checkpoint_arguments(parser)
    add_verify_argument(parser)

    def command(arguments: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
        config = resolve_probe(load_config(arguments.config, overrides))
        return probe_checkpoint(
            config, arguments.checkpoint, arguments.network, verify=arguments.verify
        )

    run_command(command, parser)


if __name__ == "__main__":
    main()
