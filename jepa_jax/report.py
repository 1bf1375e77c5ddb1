"""A page about a run, or several side by side: python -m jepa_jax.report WORKDIR [WORKDIR ...]

It writes `report.html`, which holds its pictures and needs nothing else, and the pictures as PNG
beside it, to WORKDIR/report/ or to --out: what was run, probes (those that
`python -m jepa_jax.probe` wrote to WORKDIR/probes/), curves, diagnostics (computed for the newest
checkpoint, if `python -m jepa_jax.diagnose` did not), and what the features look like.
"""

import argparse
import datetime
import pathlib
import sys
from typing import Any

from jepa_jax.command_line import make_parser, run_command
from jepa_jax.data.sources import open_source
from jepa_jax.diagnose import IMAGES, diagnose_opened
from jepa_jax.errors import StoppedRunError, UserError
from jepa_jax.evaluation.diagnosis import read_rows, write_row
from jepa_jax.opened import Opened, open_checkpoint
from jepa_jax.reporting.charts import COLOURS, Line, line_chart, spectrum_chart
from jepa_jax.reporting.page import MEANINGS, Group, Page, Picture, RunPart, render
from jepa_jax.reporting.predictor_maps import guess_blocks, read_networks
from jepa_jax.reporting.run_facts import diagnostics_table, read_probes, run_facts
from jepa_jax.reporting.run_pictures import guess_group, map_groups, neighbor_group
from jepa_jax.training.compilation import use_compilation_cache
from jepa_jax.training.metrics import read_metrics

_PROBE = "python -m jepa_jax.probe --config configs/probe/linear.py"
_GUESSED, _PATCH_IMAGES = 50, 200  # test images; training images whose patches are looked through
# name in metrics.jsonl -> title, caption
_CURVES = {
    "loss": (
        "loss",
        "It may rise while the features improve, and be lowest when they have collapsed; it can't "
        "be compared between objectives. Spikes are bad.",
    ),
    "knn_accuracy": (
        "k-NN accuracy, training images",
        "Rises, if the features come to tell the classes apart.",
    ),
    "linear_accuracy": (
        "linear accuracy, training images",
        "Rises, if a linear head can tell the classes apart by the features.",
    ),
    "effective_rank": (
        "effective rank (RankMe) of a batch",
        "Rises or stays up; falling towards 1 is collapse.",
    ),
    "position_share": (
        "position share",
        "Variance of the patch features that is position alone. Falls; near 1 the features say "
        "only where a patch is.",
    ),
    "gradient_norm": ("gradient norm", "Steady or slowly changing; jumps go with loss spikes."),
    "lr": ("learning rate", "As configured: a warm-up, then a cosine."),
    "weight_decay": ("weight decay", "As configured."),
}
_OVER_CHECKPOINTS = (
    "knn_accuracy",
    "rankme",
    "lidar",
    "alpha_req",
    "stable_rank",
    "uniformity",
    "position_share",
)


def write_report(workdirs: list[pathlib.Path], out: pathlib.Path) -> dict[str, Any]:
    """Writes the page and its pictures.

    Args:
      workdirs: of runs with at least one checkpoint.
      out: the folder to write to.

    Raises:
      UserError: a workdir holds no checkpoint that can be read.
    """
    use_compilation_cache()
    opened = [_open(workdir) for workdir in workdirs]
    names = _names(workdirs)
    out.mkdir(parents=True, exist_ok=True)
    runs, lines, rows = [], [], []
    for number, (workdir, run) in enumerate(zip(workdirs, opened, strict=True)):
        print(f"{workdir}: step {run.step} ...", file=sys.stderr, flush=True)
        folder = out / str(number + 1) if len(workdirs) > 1 else out
        problem, groups = "", list[Group]()
        try:
            if run.step not in {row["step"] for row in read_rows(workdir)}:
                write_row(workdir, diagnose_opened(run, images=IMAGES))
            groups = _feature_groups(run, folder)
        except (UserError, StoppedRunError) as error:  # the images are not on this machine
            problem = str(error)
        metrics, diagnosed = read_metrics(workdir / "metrics.jsonl"), read_rows(workdir)
        colour = COLOURS[number % len(COLOURS)]
        lines.append((names[number], colour, metrics))
        rows.append((names[number], colour, diagnosed))
        runs.append(
            RunPart(
                name=names[number],
                colour=colour,
                command=f"{_PROBE} --checkpoint {workdir}",
                facts=run_facts(run.config, workdir, metrics, run.step or 0),
                diagnostics=diagnostics_table(diagnosed[-1]) if diagnosed else {},
                probes=read_probes(workdir, workdirs[0] if number else None),
                groups=tuple(groups),
                problem=problem,
            )
        )
    now = datetime.datetime.now(datetime.UTC)
    page = Page(
        title=", ".join(names) if len(names) < 4 else f"{len(names)} runs",
        made=f"Report of {now:%Y-%m-%d %H:%M} UTC, by jepa_jax.report",
        runs=tuple(runs),
        curves=_curves(out, lines),
        diagnostics=_diagnostics(out, rows),
    )
    path = out / "report.html"
    path.write_text(render(page), encoding="utf-8")
    return {
        "report": str(path),
        "bytes": path.stat().st_size,
        "steps": [run.step for run in opened],
        "problems": [run.problem for run in runs if run.problem],
    }


def _open(workdir: pathlib.Path) -> Opened:
    opened = open_checkpoint(workdir)
    if opened.workdir is None or opened.workdir != workdir.absolute():
        raise UserError(f"{workdir}: must be the workdir of a run, with checkpoints/<step>")
    return opened


def _names(workdirs: list[pathlib.Path]) -> list[str]:
    """The folders' names, or their paths where two have the same name."""
    names = [workdir.absolute().name for workdir in workdirs]
    return names if len(set(names)) == len(names) else [str(workdir) for workdir in workdirs]


def _feature_groups(run: Opened, folder: pathlib.Path) -> list[Group]:
    config, encode = run.config, run.tokens
    train, test = open_source(config.data, "train"), open_source(config.data, "test")
    if test.num_examples < 2:
        raise UserError(
            f"config.data.path = {config.data.path!r}: has {test.num_examples} test image; must be "
            "at least 2, whose features can differ"
        )
    groups = map_groups(folder, encode, run.weights, config, test)
    groups.append(neighbor_group(folder, encode, run.weights, config, train=train, test=test))
    networks = read_networks(run.folder, run.objective)
    if networks is not None:
        guesses = guess_blocks(
            run.objective,
            networks,
            config,
            train=train,
            test=test,
            number=min(_GUESSED, test.num_examples),
            references=_PATCH_IMAGES,
        )
        groups.append(guess_group(folder, config, guesses))
    return groups


Rows = list[tuple[str, str, list[dict[str, Any]]]]  # name, colour, rows of a file


def _lines(runs: Rows, key: str) -> list[Line]:
    lines = [
        Line(name, colour, [(row["step"], row[key]) for row in rows if row.get(key) is not None])
        for name, colour, rows in runs
    ]
    return [line for line in lines if line.points]


def _curves(folder: pathlib.Path, runs: Rows) -> tuple[Picture, ...]:
    pictures = []
    for key, (title, caption) in _CURVES.items():
        if lines := _lines(runs, key):
            path = folder / f"curve_{key}.png"
            line_chart(path, lines, with_zero=key != "loss")
            pictures.append(Picture(path, title, caption))
    return tuple(pictures)


def _diagnostics(folder: pathlib.Path, runs: Rows) -> tuple[Picture, ...]:
    pictures = []
    spectra = [
        Line(name, colour, list(enumerate(rows[-1]["spectrum"], start=1)))
        for name, colour, rows in runs
        if rows and rows[-1].get("spectrum")
    ]
    if spectra:
        path = folder / "spectrum.png"
        spectrum_chart(path, spectra)
        caption = (
            "Eigenvalues of the covariance of pooled features. Good: a slow, straight fall. Bad: a "
            "cliff after a few directions, beyond which there is nothing."
        )
        pictures.append(Picture(path, "spectrum", caption))
    for key in _OVER_CHECKPOINTS:
        lines = _lines(runs, key)
        if max((len(line.points) for line in lines), default=0) > 1:
            path = folder / f"diagnostic_{key}.png"
            line_chart(path, lines, with_zero=True)
            label, meaning = MEANINGS[key]
            pictures.append(Picture(path, label, f"{meaning[0].upper()}{meaning[1:]}."))
    return tuple(pictures)


def main() -> None:
    parser = make_parser("jepa_jax.report", __doc__)
    parser.add_argument("workdirs", nargs="+", type=pathlib.Path, metavar="WORKDIR")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        metavar="DIR",
        help="folder of the page (default: WORKDIR/report; needed with several runs)",
    )

    def command(arguments: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
        if overrides:
            parser.error(f"unknown argument {overrides[0]}")
        if arguments.out is None and len(arguments.workdirs) > 1:
            raise UserError("--out DIR: is needed with several workdirs")
        out = arguments.out or arguments.workdirs[0] / "report"
        try:
            return write_report(arguments.workdirs, out)
        except OSError as error:
            raise UserError(f"--out {out}: can't be written: {error.strerror}") from error

    run_command(command, parser)


if __name__ == "__main__":
    main()
