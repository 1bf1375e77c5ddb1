"""Probes a checkpoint: python -m jepa_jax.probe --config configs/probe/knn.py --checkpoint DIR

DIR is a workdir of jepa_jax.train, whose newest checkpoint is taken, one step's folder in it, or
what jepa_jax.convert wrote. Only the target encoder is read (or the context encoder, with --network
encoder), and the configuration that it was trained with. Or DIR is a Hugging Face folder or hub id,
which doesn't say what images to probe it on: --config.data.path=PHOTOS does.

Of a run, the result is also written to WORKDIR/probes/, where jepa_jax.report finds it.
"""

import argparse
import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jepa_jax.command_line import (
    add_checkpoint_arguments,
    add_verify_argument,
    make_parser,
    run_command,
)
from jepa_jax.config import (
    Config,
    DataConfig,
    ProbeConfig,
    probe_data,
    resolve_probe,
)
from jepa_jax.config.files import load_config
from jepa_jax.data.sources import Source
from jepa_jax.encoder import find_encoder, is_huggingface, load_encoder
from jepa_jax.errors import UserError
from jepa_jax.evaluation.comparison import (
    Representation,
    SinkOf,
    features_of,
    labelled_source,
    probe_each,
)
from jepa_jax.evaluation.feature_files import FeatureFiles, identity_of
from jepa_jax.evaluation.report import print_table, reduced_of
from jepa_jax.evaluation.results import write_result
from jepa_jax.evaluation.scores import measured, paired, per_example
from jepa_jax.evaluation.tasks import task_of
from jepa_jax.interop.hub import local_path
from jepa_jax.objectives.objective import Objective, initial_encoder
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training import checkpoint
from jepa_jax.training.compilation import use_compilation_cache

_MOST_CLASSES = 200  # of a confusion matrix that is written


class Opened(NamedTuple):
    """An encoder of a checkpoint, and what it was trained as.

    Attributes:
      folder: of the checkpoint; workdir: of the run that it is part of, None of converted ones.
      step: that it was saved after, None of converted ones.
    """

    folder: pathlib.Path
    workdir: pathlib.Path | None
    step: int | None
    config: Config
    objective: Objective
    network: str
    weights: Any


def open_checkpoint(
    path: str | os.PathLike, network: str | None = None, *, verify: bool = True
) -> Opened:
    """Reads one encoder of a checkpoint.

    Args:
      path: workdir, folder of one checkpoint, or a Hugging Face folder or hub id.
      network: which encoder; None: see `checkpoint.choose_encoder`.
      verify: compare the files that are read with the digests that were taken when they were saved.

    Raises:
      UserError: the checkpoint can't be read.
    """
    path = local_path(path)
    if is_huggingface(path):
        encode, weights = load_encoder(path, network=network)
        objective = make_objective(encode.config)
        return Opened(path, None, None, encode.config, objective, encode.network, weights)
    folder = find_encoder(path, network, verify=verify)
    trained = checkpoint.read_config(folder)
    objective = make_objective(trained)
    network = checkpoint.choose_encoder(folder, network, objective)
    weights = checkpoint.restore_encoder(folder, network, objective)
    of_run = folder.parent.name == "checkpoints" and folder.name.isdecimal()
    workdir, step = (folder.parent.parent, int(folder.name)) if of_run else (None, None)
    return Opened(folder, workdir, step, trained, objective, network, weights)


def probe_checkpoint(
    config: ProbeConfig,
    path: str | os.PathLike,
    network: str | None = None,
    *,
    verify: bool = True,
    against: str | os.PathLike | None = None,
    features: pathlib.Path | None = None,
    results: pathlib.Path | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """What an encoder in a checkpoint is worth, and its controls.

    Args:
      path, network, verify: see `open_checkpoint`.
      against: another checkpoint, that is compared on the same images.
      features: folder where features are kept, and reused; None: nowhere.
      results: folder for the result; None: `probes` in the workdir of a run.
      name: of the result; None: the protocol's.

    Raises:
      UserError: a checkpoint can't be read, or the data don't suit the probe.
    """
    use_compilation_cache()
    opened = open_checkpoint(path, network, verify=verify)
    others = {}
    if config.supervised is not None:
        others["supervised"] = open_checkpoint(config.supervised, verify=verify)
        _check_same_size(others["supervised"], opened)
    if against is not None:
        others["against"] = open_checkpoint(against, verify=verify)
    data = probe_data(config, opened.config)
    found = _represent(config, opened, data, controls=config.controls, features=features)
    for row, other in others.items():
        only = _represent(config, other, data, controls=False, features=features)
        found[row] = only["pretrained"]
    rows = probe_each(config, found)
    outputs = {row: result.pop("outputs") for row, result in rows.items()}
    labels = found["pretrained"].test.labels
    print_table({config.protocol: rows}, reduced=reduced_of(found), num_test=len(labels))

    own = rows["pretrained"]
    measure = measured(own)
    result: dict[str, Any] = {
        "protocol": config.protocol,
        **{key: value for key, value in own.items() if key not in ("per_class", "confusion")},
        "controls": {row: scores[measure] for row, scores in rows.items() if row != "pretrained"},
        "intervals": {row: scores["interval"] for row, scores in rows.items()},
        "reduced": reduced_of(found),
        "network": opened.network,
        "checkpoint": str(opened.folder),
    }
    if against is not None:
        task = task_of(labels)
        result["comparison"] = paired(
            *(per_example(task, outputs[row], labels) for row in ("pretrained", "against"))
        )
    folder = results or (opened.workdir / "probes" if opened.workdir else None)
    if folder is not None:
        table = _table(config, opened, data, rows, found["pretrained"], measure)
        name = name or f"{config.protocol}-{opened.step or opened.folder.name}"
        written = write_result(folder, name, result | table, outputs=outputs, labels=labels)
        result["result"] = str(written)
    return result


def _represent(
    config: ProbeConfig,
    opened: Opened,
    data: DataConfig,
    *,
    controls: bool,
    features: pathlib.Path | None,
) -> dict[str, Representation]:
    """Features of the encoder, and of its controls."""
    encoders = {"pretrained": opened.weights}
    if controls:
        encoders["random_init"] = initial_encoder(opened.objective, opened.config.seed)
    layers = None
    if config.layers != (-1,):
        layers = absolute_layers(config.layers, opened.config)
    return features_of(
        data,
        opened.objective,
        encoders,
        batch_size=config.batch_size,
        pixels=controls,
        layers=layers,
        sink=None if features is None else files_of(opened, encoders, data, features, layers),
    )


def absolute_layers(layers: tuple[int, ...], config: Config) -> tuple[int, ...]:
    """Blocks counted from 0, of blocks that are counted from the end.

    Raises:
      UserError: there are not so many.
    """
    depth = config.model.depth
    if min(layers) < -depth:
        raise UserError(f"config.layers = {layers}: the encoder has only {depth} blocks")
    return tuple(depth + layer for layer in layers)


def files_of(
    opened: Opened,
    encoders: Mapping[str, Any],
    data: DataConfig,
    root: pathlib.Path,
    layers: tuple[int, ...] | None,
) -> SinkOf:
    """Where the pooled features of each encoder are kept; see `feature_files`."""
    width = opened.config.model.embed_dim * len(layers or (0,))
    taken = {"layers": layers, "pooled": True, "dtype": "float32"}

    def sink(split: str, source: Source, encoder: str) -> FeatureFiles:
        identity = identity_of(
            opened.config, encoders[encoder], data, source, split=split, features=taken
        )
        return FeatureFiles(
            root, identity, count=source.num_examples, shape=(width,), dtype="float32"
        )

    return sink


def _check_same_size(supervised: Opened, opened: Opened) -> None:
    for field in ("patch_size", "embed_dim", "depth", "num_heads"):
        theirs, ours = (getattr(one.config.model, field) for one in (supervised, opened))
        if theirs != ours:
            raise UserError(
                f"config.supervised = {supervised.folder}: its model.{field} is {theirs}, and must "
                f"be {ours}, that of the encoder it is a control for"
            )


def _table(
    config: ProbeConfig,
    opened: Opened,
    data: DataConfig,
    rows: Mapping[str, Mapping[str, Any]],
    pretrained: Representation,
    measure: str,
) -> dict[str, Any]:
    """What the report shows of a result, besides what the command prints."""
    source = labelled_source(data, "test")
    confusion = rows["pretrained"].get("confusion", [])
    return {
        "metric": measure,
        "rows": {
            row: {key: value for key, value in scores.items() if key != "confusion"}
            for row, scores in rows.items()
        },
        "confusion": confusion if len(confusion) <= _MOST_CLASSES else [],
        "class_names": list(source.class_names),
        "num_train": len(pretrained.train.labels),
        "num_test": len(pretrained.test.labels),
        "step": opened.step,
        "data": dataclasses.asdict(data),
        "config": dataclasses.asdict(config),
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
        "device": jax.devices()[0].device_kind,
    }


def main() -> None:
    parser = make_parser("jepa_jax.probe", __doc__)
    parser.add_argument("--config", required=True, help="a file in configs/probe/")
    add_checkpoint_arguments(parser)
    add_verify_argument(parser)
    parser.add_argument(
        "--against",
        metavar="DIR",
        help="another checkpoint: whether the two differ, by a paired test on the same images",
    )
    parser.add_argument(
        "--features",
        type=pathlib.Path,
        metavar="DIR",
        help="keep the features there, and reuse those that are there",
    )
    parser.add_argument(
        "--results",
        type=pathlib.Path,
        metavar="DIR",
        help="write the result there (default: WORKDIR/probes, of a run)",
    )

    def command(arguments: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
        config = resolve_probe(load_config(arguments.config, overrides))
        return probe_checkpoint(
            config,
            arguments.checkpoint,
            arguments.network,
            verify=arguments.verify,
            against=arguments.against,
            features=arguments.features,
            results=arguments.results,
        )

    run_command(command, parser)


if __name__ == "__main__":
    main()
