"""What a run's own files say of it, in words and tables for the report."""

import json
import logging
import pathlib
from typing import Any

from jepa_jax.config import Config
from jepa_jax.errors import UserError
from jepa_jax.evaluation.results import compare
from jepa_jax.reporting.page import MEANINGS, Cell, Probe, shown
from jepa_jax.training.run_record import read_run_record

log = logging.getLogger(__name__)

_MOST_CLASSES = 20  # of a confusion matrix that is shown whole
_CONFUSED = 8  # pairs of classes


def run_facts(
    config: Config, workdir: pathlib.Path, metrics: list[dict[str, Any]], step: int
) -> dict[str, str]:
    """What was run, on what, and how long: label -> text."""
    model, data, optimizer = config.model, config.data, config.optimizer
    rate = f"{shown(optimizer.lr)}, warm-up of {shown(optimizer.warmup_epochs)} epochs"
    facts = {
        "objective": config.objective.name,
        "model": (
            f"ViT, width {model.embed_dim}, {model.depth} blocks, {model.num_heads} heads, "
            f"patches of {model.patch_size}"
        ),
        "data": f"{data.source}{f', {data.path}' if data.path else ''}",
        "images": f"{data.image_size[0]} x {data.image_size[1]} pixels",
        "optimizer": f"AdamW, learning rate {rate}",
        "weight decay": f"{shown(optimizer.weight_decay)} to {shown(optimizer.final_weight_decay)}",
        "batch, epochs": f"{shown(config.batch_size)} images, {shown(config.epochs)} epochs",
        "checkpoint": f"step {shown(step)}",
        "seed": str(config.seed),
        "matrix products": config.compute.dtype,
    }
    if (hours := training_hours(metrics, config.batch_size)) > 0:
        facts["training time"] = f"{hours:.2f} h" if hours >= 1 else f"{60 * hours:.1f} min"
    record = read_run_record(workdir)
    if record is None:
        facts["machine"] = "not recorded"
        return facts
    facts["machine"] = f"{record.get('devices')} x {record.get('device')}"
    versions = record.get("versions") or {}
    facts["packages"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    return facts


def training_hours(metrics: list[dict[str, Any]], batch_size: int) -> float:
    """Hours of the steps in `metrics.jsonl`, from the images per second between its rows."""
    seconds, before = 0.0, 0
    for row in metrics:
        if speed := row.get("images_per_second"):
            seconds += (row["step"] - before) * batch_size / speed
            before = row["step"]
    return seconds / 3600


def diagnostics_table(row: dict[str, Any]) -> dict[str, str]:
    """The newest checkpoint's diagnostics: label -> value."""
    table = {label: shown(row.get(name)) for name, (label, _) in MEANINGS.items() if name in row}
    if "alpha_ranks" in row:
        low, high = row["alpha_ranks"]
        table[MEANINGS["alpha_req"][0]] += f" (ranks {low} to {high})"
    return table


def read_probes(workdir: pathlib.Path, first: pathlib.Path | None = None) -> tuple[Probe, ...]:
    """The probes that were written to `workdir/probes/*.json`; what is none is left out.

    Args:
      first: of another run, with whose results of the same kind they are compared.
    """
    found = []
    for path in sorted(workdir.glob("probes/*.json")):
        try:
            result = json.loads(path.read_text())
            probe = _probe(_kind(path), result, _comparison(path, first))
            found.append((_kind(path), int(result["step"] or 0), probe))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            log.warning("%s: left out: it is no result of a probe: %r", path, error)
    return tuple(probe for _, _, probe in sorted(found, key=lambda each: each[:2]))


def _kind(path: pathlib.Path) -> str:
    """A result's name without the step."""
    return path.stem.rpartition("-")[0] or path.stem


def _comparison(path: pathlib.Path, first: pathlib.Path | None) -> str:
    """How the pretrained encoder differs from that of another run on the same test images."""
    theirs = (
        []
        if first is None
        else [other for other in first.glob("probes/*.json") if _kind(other) == _kind(path)]
    )
    if not theirs:
        return ""
    newest = max(theirs, key=lambda other: int(json.loads(other.read_text())["step"] or 0))
    try:
        found = compare(path, newest)
    except UserError:  # of other images
        return ""
    low, high = found["interval"]
    return (
        f"{found['difference']:+.3f} beside {first.name if first else ''}, on the same images: "
        f"95 % {low:+.3f} to {high:+.3f}, p = {found['p_value']:.2g} ({found['test']})"
    )


def _probe(kind: str, result: dict[str, Any], comparison: str) -> Probe:
    metric = result.get("metric", "accuracy")
    measured = {name: row for name, row in result["rows"].items() if metric in row}
    rows = []
    for name, row in measured.items():
        low, high = row.get("interval") or (None, None)
        rows.append(
            {
                "name": name.replace("_", " "),
                "value": f"{row[metric]:.3f}",
                "interval": "" if low is None else f"{low:.3f} to {high:.3f}",
                "top5": f"{row['top5']:.3f}" if row.get("top5") is not None else "",
                "share": f"{100 * min(max(row[metric], 0), 1):.1f}",
            }
        )
    names, counts = tuple(map(str, result.get("class_names") or ())), result.get("confusion") or []
    names = names if len(names) == len(counts) else tuple(map(str, range(len(counts))))
    facts = (
        f"{result.get('network', 'encoder').replace('_', ' ')} at step {shown(result['step'])}; "
        f"{shown(result.get('num_train'))} training and {shown(result.get('num_test'))} test images"
    )
    own = result["rows"].get("pretrained", {})
    if own.get("std") is not None:
        facts += f"; mean of {len(own['splits'])} splits, standard deviation {own['std']:.3f}"
    if own.get("chosen") is not None:
        facts += f"; chosen: {shown(own['chosen'])}"
    return Probe(
        title=f"{kind.replace('_', ' ')} probe",
        facts=facts,
        comparison=comparison,
        metric=metric,
        rows=tuple(rows),
        classes=names if len(names) <= _MOST_CLASSES else (),
        confusion=_cells(counts) if len(names) <= _MOST_CLASSES else (),
        confused=_confused(names, counts),
    )


def _cells(counts: list[list[int]]) -> tuple[tuple[Cell, ...], ...]:
    return tuple(
        tuple(Cell(f"{count:,}" if count else "", count / max(sum(row), 1)) for count in row)
        for row in counts
    )


def _confused(names: tuple[str, ...], counts: list[list[int]]) -> tuple[str, ...]:
    """The pairs that are most often taken for each other, in words."""
    pairs = [
        (counts[i][j] / max(sum(counts[i]), 1), names[i], names[j])
        for i in range(len(counts))
        for j in range(len(counts))
        if i != j and counts[i][j]
    ]
    pairs.sort(key=lambda pair: -pair[0])
    return tuple(f"{of} taken for {taken}: {share:.0%}" for share, of, taken in pairs[:_CONFUSED])
