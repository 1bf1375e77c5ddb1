"""What a checkpoint's features are like: python -m jepa_jax.diagnose --checkpoint DIR

RankMe, LiDAR, α-ReQ, stable rank, spread, mean cosine, uniformity, spectrum, the share of positions
and k-NN between training images, of up to --images of them; docs/reading_a_run.md says what they
mean. DIR is a workdir of jepa_jax.train, whose newest checkpoint is taken (with --all: every one
that has no row yet), one step's folder in it, what jepa_jax.convert wrote, or a Hugging Face folder
or hub id. Of a run, the rows are kept in `workdir/diagnostics.jsonl`, one for each step; not with
--network, nor with --config.data.path=PHOTOS, which takes other images than those of the training.
"""

import argparse
import pathlib
import sys
from typing import Any

from jepa_jax.command_line import (
    add_checkpoint_arguments,
    add_verify_argument,
    make_parser,
    run_command,
)
from jepa_jax.data.sources import open_source
from jepa_jax.errors import UserError
from jepa_jax.evaluation.diagnosis import FILE, diagnose, draw_sample, read_rows, write_row
from jepa_jax.opened import Opened, open_checkpoint
from jepa_jax.training.compilation import use_compilation_cache
from jepa_jax.training.steps import step_folders

IMAGES = 2000


def diagnose_opened(opened: Opened, *, images: int) -> dict[str, Any]:
    """The row of one checkpoint, with its step if it has one; see `evaluation.diagnosis`."""
    source = open_source(opened.config.data, "train")
    sample = draw_sample(opened.config.data, source, number=images, seed=opened.config.seed)
    step = {} if opened.step is None else {"step": opened.step}
    return {**step, "network": opened.network} | diagnose(opened.tokens, opened.weights, sample)


def diagnose_checkpoints(
    path: pathlib.Path,
    network: str | None,
    overrides: list[str],
    *,
    images: int = IMAGES,
    every: bool = False,
    verify: bool = True,
) -> dict[str, Any]:
    """Diagnoses a checkpoint, or all of a run that have no row yet.

    Returns:
      The row of the newest one, and which were computed.

    Raises:
      UserError: see `open_checkpoint`; with `every`, the path is no run's workdir.
    """
    use_compilation_cache()
    folders = [path]
    if every:
        folders = step_folders(path)[::-1]
        if not folders:
            raise UserError(f"--checkpoint {path}: --all needs a workdir with checkpoints/<step>")
        known = {row["step"] for row in read_rows(path)}
        folders = [folder for folder in folders if int(folder.name) not in known]
    row: dict[str, Any] = {}
    for folder in folders:
        opened = open_checkpoint(folder, network, overrides, verify=verify)
        row = diagnose_opened(opened, images=images)
        if opened.workdir is not None and not overrides and network is None:
            write_row(opened.workdir, row)
        shown = ", ".join(f"{name} {x:.4g}" for name, x in row.items() if isinstance(x, float))
        print(f"{opened.folder}: {shown}", file=sys.stderr, flush=True)
    if not row:
        row = read_rows(path)[-1]
    return {**row, "checkpoint": str(path), "computed": len(folders)}


def main() -> None:
    parser = make_parser("jepa_jax.diagnose", __doc__)
    add_checkpoint_arguments(parser)
    add_verify_argument(parser)
    parser.add_argument(
        "--all", action="store_true", help=f"every checkpoint of the run without a row in {FILE}"
    )
    parser.add_argument(
        "--images",
        type=int,
        default=IMAGES,
        metavar="N",
        help="training images to look at, at most (default: %(default)s)",
    )

    def command(arguments: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
        if arguments.images < 3:
            raise UserError(f"--images {arguments.images}: must be at least 3")
        return diagnose_checkpoints(
            arguments.checkpoint,
            arguments.network,
            overrides,
            images=arguments.images,
            every=arguments.all,
            verify=arguments.verify,
        )

    run_command(command, parser)


if __name__ == "__main__":
    main()
