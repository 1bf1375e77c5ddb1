"""The checkpoints of a run: python -m jepa_jax.checkpoints list DIR, or verify DIR

DIR is a workdir of jepa_jax.train, or what jepa_jax.convert wrote. `list` compares names and sizes
of all files with each checkpoint's manifest, and `verify` their SHA-256 too, which reads
everything. Neither changes anything. The exit code is 3 if a checkpoint is damaged.
"""

import argparse
import contextlib
import pathlib
import sys
import time
from typing import Any

from jepa_jax.command_line import make_parser, run_command
from jepa_jax.errors import UserError
from jepa_jax.training.manifest import find_fault, is_unverified
from jepa_jax.training.steps import SET_ASIDE, step_folders, strays, unfinished


def describe(workdir: pathlib.Path, *, digests: bool) -> list[dict[str, Any]]:
    """A row for each checkpoint, the newest first, and then for what else is there.

    Returns:
      name; bytes; age in seconds; health: "good", "unverified" (of a format without manifests),
      "damaged", "incomplete", "unreadable", "set aside" or "unfinished" (a save that goes on, or
      was cut); file and why, of what is not good.

    Raises:
      UserError: there are none.
    """
    rows = []
    for folder in step_folders(workdir):
        fault = find_fault(folder, digests=digests)
        row = _measured(folder)
        if fault is not None:
            row |= {"health": fault.kind, "file": fault.file, "why": fault.why}
        else:
            row["health"] = "unverified" if is_unverified(folder) else "good"
        rows.append(row)
    for folder in strays(workdir):
        if SET_ASIDE in folder.name and not folder.is_symlink():
            rows.append(_measured(folder) | {"health": "set aside"})
    rows += [_measured(folder) | {"health": "unfinished"} for folder in unfinished(workdir)]
    if not rows:
        raise UserError(f"{workdir}: no checkpoint there; must hold checkpoints/<step>")
    return rows


def _measured(folder: pathlib.Path) -> dict[str, Any]:
    num_bytes, changed = 0, time.time()
    with contextlib.suppress(FileNotFoundError):  # a run may rename or delete it now
        changed = folder.stat().st_mtime
        for path in folder.rglob("*"):
            num_bytes += path.stat().st_size if path.is_file() else 0
    age = max(0, round(time.time() - changed))
    return {"name": folder.name, "bytes": num_bytes, "age_seconds": age}


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'checkpoint':<16} {'MB':>10} {'age in h':>9}  health"]
    for row in rows:
        health = row["health"] + (f": {row['file']} {row['why']}" if "file" in row else "")
        megabytes, hours = row["bytes"] / 1e6, row["age_seconds"] / 3600
        lines.append(f"{row['name']:<16} {megabytes:>10.1f} {hours:>9.1f}  {health}")
    return "\n".join(lines)


def main() -> None:
    parser = make_parser("jepa_jax.checkpoints", __doc__)
    parser.add_argument("verb", choices=("list", "verify"), metavar="VERB", help="list or verify")
    parser.add_argument("workdir", type=pathlib.Path, metavar="DIR")
    damaged: list[str] = []

    def command(arguments: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
        if overrides:
            parser.error(f"unknown argument {overrides[0]}")
        rows = describe(arguments.workdir, digests=arguments.verb == "verify")
        print(table(rows), file=sys.stderr)
        damaged.extend(row["name"] for row in rows if row["health"] == "damaged")
        return {"workdir": str(arguments.workdir), "checkpoints": rows, "damaged": damaged}

    run_command(command, parser)
    if damaged:
        sys.exit(3)


if __name__ == "__main__":
    main()
