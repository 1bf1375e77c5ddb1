"""Probes a checkpoint: python -m jepa_jax.probe --config configs/probe/knn.py --checkpoint DIR

DIR is a workdir of jepa_jax.train, whose newest checkpoint is taken, one step's folder in it, or
what jepa_jax.convert wrote. Only the target encoder is read (or the context encoder, with --network
encoder), and the configuration that it was trained with. Or DIR is a Hugging Face folder or hub id,
which doesn't say what images to probe it on: --config.data.path=PHOTOS does.

Of a run, the result is also written to WORKDIR/probes/, where jepa_jax.report finds it.
"""

import argparse
import os
import pathlib
from typing import Any

from jepa_jax.command_line import (
    add_checkpoint_arguments,
    add_verify_argument,
    make_parser,
    run_command,
)
from jepa_jax.config import (
    DataConfig,
    DenseConfig,
    FineTuneConfig,
    HeadsConfig,
    ProbeConfig,
    probe_data,
    resolve_probe,
    to_dict,
)
from jepa_jax.config.files import load_config
from jepa_jax.errors import UserError
from jepa_jax.evaluation.extraction import say
from jepa_jax.evaluation.results import check_folder, table_of, write_result
from jepa_jax.evaluation.scores import measured, paired
from jepa_jax.evaluation.table import comparison_line, print_table
from jepa_jax.opened import Opened, open_checkpoint
from jepa_jax.protocols import (
    dense_rows,
    fine_tuning_rows,
    head_rows,
    num_train,
    open_sources,
    probe_rows,
)
from jepa_jax.training.compilation import use_compilation_cache

# Where the encoder of a row comes from, for messages.
_FIELDS = {
    "pretrained": "--checkpoint",
    "supervised": "config.supervised =",
    "against": "--against",
}


def probe_checkpoint(
    config: ProbeConfig,
    path: str | os.PathLike,
    network: str | None = None,
    *,
    verify: bool = True,
    against: str | os.PathLike | None = None,
    features: pathlib.Path | None = None,
    workdir: pathlib.Path | None = None,
    results: pathlib.Path | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """What an encoder in a checkpoint is worth, and its controls.

    Args:
      path, network, verify: see `open_checkpoint`.
      against: another checkpoint, that is compared on the same images.
      features: folder where features are kept, and reused; None: nowhere.
      workdir: for the runs of fine-tuning.
      results: folder for the result; None: `probes` in the workdir of a run.
      name: what the result's begins with; None: the protocol.

    Raises:
      UserError: a checkpoint can't be read, or the data don't suit the probe.
    """
    _check_folders(config, features, workdir)
    use_compilation_cache()
    opened = open_checkpoint(path, network, verify=verify)
    others = {}
    if config.supervised is not None:
        others["supervised"] = _open_other(_FIELDS["supervised"], config.supervised, verify)
        _check_same_size(others["supervised"], opened)
    if against is not None:
        others["against"] = _open_other(_FIELDS["against"], against, verify)
    data = probe_data(config, opened.config)
    for name_of, one in {"pretrained": opened, **others}.items():
        _check_images(_FIELDS[name_of], one, data)
    folder = results or (opened.workdir / "probes" if opened.workdir else None)
    for flag, written in (("--results", folder), ("--features", features)):
        if written is not None:
            check_folder(flag, written)
    sources = open_sources(config, data)
    reduced: dict[str, dict[str, int]] = {}
    if isinstance(config, FineTuneConfig):
        assert workdir is not None  # as checked above
        rows = fine_tuning_rows(config, opened, others, data, sources, workdir)
    elif isinstance(config, DenseConfig):
        rows = dense_rows(config, opened, others, data, sources)
    elif isinstance(config, HeadsConfig):
        rows = head_rows(config, opened, others, data, sources, features=features)
    else:
        rows, reduced = probe_rows(config, opened, others, data, sources, features=features)
    of_each = {row: found.pop("per_example") for row, found in rows.items()}
    labels = [found.pop("labels") for found in rows.values()].pop()
    print_table({config.protocol: rows}, reduced=reduced, num_test=len(labels))

    own = rows["pretrained"]
    measure = measured(own)
    result: dict[str, Any] = {
        "protocol": config.protocol,
        **{key: value for key, value in own.items() if key not in ("per_class", "confusion")},
        "controls": {row: scores[measure] for row, scores in rows.items() if row != "pretrained"},
        "intervals": {row: scores["interval"] for row, scores in rows.items()},
        "reduced": reduced,
        "network": opened.network,
        "checkpoint": str(opened.folder),
    }
    if against is not None:
        result["comparison"] = paired(of_each["pretrained"], of_each["against"])
        say(comparison_line(result["comparison"]))
    if folder is not None:
        table = table_of(
            rows,
            class_names=() if isinstance(config, DenseConfig) else sources["test"].class_names,
            num_train=num_train(config, sources),
            num_test=len(labels),
        )
        asked = {"step": opened.step, "data": to_dict(data), "config": to_dict(config)}
        name = _name(name or config.protocol, config, opened, data)
        written = write_result(
            folder, name, result | table | asked, per_example=of_each, labels=labels
        )
        result["result"] = str(written)
    return result


def _name(first: str, config: ProbeConfig, opened: Opened, data: DataConfig) -> str:
    """Of a result, so that another probe, encoder, labels, images or size don't replace it."""
    low_shot = getattr(config, "low_shot", None)
    parts = [first]
    if opened.network != next(iter(opened.objective.encoders)):
        parts.append(opened.network)
    layers = getattr(config, "layers", (-1,))
    if layers != (-1,):
        parts.append(f"blocks{'_'.join(map(str, layers))}")
    if low_shot is not None:
        share = "" if low_shot.share is None else f"{100 * low_shot.share:g}pct"
        parts.append(share or (f"{low_shot.per_class}each" if low_shot.per_class else "listed"))
    trained = opened.config.data
    if (data.source, data.path) != (trained.source, trained.path):
        parts.append(pathlib.PurePath(data.path).name if data.path else data.source)
    if data.image_size != trained.image_size:
        parts.append("x".join(map(str, data.image_size)))
    return "-".join([*parts, str(opened.step or opened.folder.name)])


def _check_folders(
    config: ProbeConfig, features: pathlib.Path | None, workdir: pathlib.Path | None
) -> None:
    """Refuses a folder that this protocol would ignore, and asks for one that it needs."""
    if isinstance(config, FineTuneConfig) and workdir is None:
        raise UserError("--workdir DIR: is needed by the protocol fine_tune, for its runs")
    if not isinstance(config, FineTuneConfig) and workdir is not None:
        raise UserError(
            f"--workdir {workdir}: is of the protocol fine_tune; {config.protocol} has no runs"
        )
    if isinstance(config, FineTuneConfig | DenseConfig) and features is not None:
        raise UserError(f"--features {features}: {config.protocol} keeps none; leave it out")


def _open_other(field: str, path: str | os.PathLike, verify: bool) -> Opened:
    try:
        return open_checkpoint(path, verify=verify)
    except UserError as error:
        raise UserError(f"{field} {error}") from error


def _check_images(field: str, one: Opened, data: DataConfig) -> None:
    """Refuses images that an encoder can't take, whatever was checked for another one."""
    patch, channels = one.config.model.patch_size, one.config.data.channels
    if any(side % patch for side in data.image_size):
        raise UserError(
            f"{field} {one.folder}: its model.patch_size is {patch}, which must divide the height "
            f"and width of the images, {data.image_size}"
        )
    if channels != data.channels:
        raise UserError(
            f"{field} {one.folder}: it takes images of {channels} channels, and these have "
            f"{data.channels}"
        )


def _check_same_size(supervised: Opened, opened: Opened) -> None:
    for field in ("patch_size", "embed_dim", "depth", "num_heads"):
        theirs, ours = (getattr(one.config.model, field) for one in (supervised, opened))
        if theirs != ours:
            raise UserError(
                f"config.supervised = {supervised.folder}: its model.{field} is {theirs}, and must "
                f"be {ours}, that of the encoder it is a control for"
            )


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
        "--workdir",
        type=pathlib.Path,
        metavar="DIR",
        help="of the protocol fine_tune: for its runs, which go on where they stopped",
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
            workdir=arguments.workdir,
            results=arguments.results,
            name=pathlib.Path(arguments.config).stem,
        )

    run_command(command, parser)


if __name__ == "__main__":
    main()
