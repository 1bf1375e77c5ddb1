"""Kills a training run with SIGKILL again and again: does it end as if nothing had happened?

    nice python -m benchmarks.kill_loop --kills 100 --folder /tmp/kill_loop

A tiny run is trained once without interruption, and once as the same command started again and
again in one workdir, and killed at a random moment each time: while it starts or restores, while
it trains, while a checkpoint is being written, between the rename and the manifest of a checkpoint,
and while an older one is deleted. After each kill, every checkpoint that `checkpoints list` calls
good must verify, the newest good one must be no older than before, and no more than two save
intervals behind the last row: one, and the steps taken while the save was on its way. The next
start must go on from it. At the end the two final states and the two metrics.jsonl must be equal.

Each kill is a line of `kills.jsonl` in the folder, and the same command goes on from there. The
last line, on standard output, is JSON.
"""

import argparse
import collections
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np

from jepa_jax.checkpoints import describe
from jepa_jax.errors import UserError
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training import checkpoint
from jepa_jax.training.metrics import read_metrics
from jepa_jax.training.setup import set_up
from jepa_jax.training.steps import latest_step

# Of ten kills in a row. "commit" needs a moment of milliseconds, and "delete" too.
PHASES = ["start", "training", "save", "commit", "delete"] * 2
STEPS_PER_EPOCH, SAVE_EVERY = 100, 10
POLL_SECONDS = 0.001
FIELDS = [
    "--config.batch_size=100",
    "--config.model.patch_size=7",
    "--config.model.embed_dim=16",
    "--config.model.depth=1",
    "--config.objective.predictor.embed_dim=16",
    "--config.objective.predictor.depth=1",
    "--config.objective.masks.context_tokens=4",
    "--config.objective.masks.target_scale=(0.25,0.25)",  # one shape to compile
    "--config.objective.masks.target_aspect_ratio=(1.0,1.0)",
    "--config.logging.every_steps=1",
    "--config.logging.diagnostics_every_steps=None",
    "--config.logging.knn_every_steps=None",
    f"--config.checkpoint.every_steps={SAVE_EVERY}",
    "--config.checkpoint.keep_last=3",
]


def start(folder: pathlib.Path, name: str, epochs: int, *more: str) -> subprocess.Popen:
    """Starts or resumes the run in `folder / name`; what it says is in `folder / name.log`."""
    cache = folder / "compiled"
    cache.mkdir(mode=0o700, exist_ok=True)
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "jepa_jax.train", "--config", "configs/fashion_mnist.py"]
    command += [*FIELDS, f"--config.epochs={epochs}", f"--workdir={folder / name}", *more]
    with (folder / f"{name}.log").open("w") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def last_row(workdir: pathlib.Path) -> int:
    """The step of the last complete line of metrics.jsonl; 0: there is none."""
    try:
        with (workdir / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2000))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    return json.loads(lines[-1])["step"] if lines else 0


def file_number(workdir: pathlib.Path) -> int | None:
    """Of metrics.jsonl, which each start replaces."""
    path = workdir / "metrics.jsonl"
    return path.stat().st_ino if path.exists() else None


def names(workdir: pathlib.Path) -> set[str]:
    folder = workdir / "checkpoints"
    return set(os.listdir(folder)) if folder.is_dir() else set()


def moment_has_come(phase: str, workdir: pathlib.Path, before: set[str]) -> bool:
    """Whether the run is now in a phase; it has taken a step, and so removed what was left over.

    Args:
      before: the names of its checkpoints once it had taken its first step.
    """
    if phase == "training":
        return True
    now = names(workdir)
    if phase == "save":
        return any("orbax-checkpoint-tmp" in name for name in now)
    new = [workdir / "checkpoints" / name for name in now - before if name.isdigit()]
    if phase == "commit":
        return any(not (folder / "manifest.json").exists() for folder in new)
    # Older ones are deleted as soon as a manifest is written.
    return any((folder / "manifest.json").exists() for folder in new)


LATEST = {"training": 1.5, "save": 0.15, "commit": 0.0, "delete": 0.03}  # seconds into a phase


def live(
    process: subprocess.Popen,
    workdir: pathlib.Path,
    phase: str,
    rng: random.Random,
    *,
    old_file: int | None,
    start_seconds: float,
) -> tuple[bool, float | None]:
    """Waits for a random moment of a phase, and kills.

    Args:
      old_file: of metrics.jsonl before the start.
      start_seconds: that a start may take.

    Returns:
      Whether it was killed, and not at its end before; seconds to its first step, if it took one.
    """
    began, newest = time.monotonic(), latest_step(workdir) or 0
    kill_at = began + rng.uniform(0, start_seconds)
    before, first_step = None, None
    while process.poll() is None:
        if phase == "start":
            if time.monotonic() > kill_at:
                break
        elif before is None:
            if file_number(workdir) != old_file and last_row(workdir) > newest:
                before, first_step = names(workdir), round(time.monotonic() - began, 2)
        elif moment_has_come(phase, workdir, before):
            time.sleep(rng.uniform(0, LATEST[phase]))
            break
        time.sleep(POLL_SECONDS)
    process.send_signal(signal.SIGKILL)
    code = process.wait()
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"the run in {workdir} ended with {code}: see {workdir}.log")
    return code != 0, first_step


def looked_at(workdir: pathlib.Path) -> dict[str, Any]:
    """What a kill left: the newest good checkpoint, and whether all that are listed verify."""
    try:
        listed = {row["name"]: row["health"] for row in describe(workdir, digests=False)}
        verified = {row["name"]: row["health"] for row in describe(workdir, digests=True)}
    except UserError:  # there are none
        listed = verified = {}
    good = [int(name) for name, health in listed.items() if health == "good"]
    return {
        "newest": max(good, default=0),
        "reached": last_row(workdir),
        "verify": all(verified[str(step)] == "good" for step in good),
        "unfinished": sum("orbax-checkpoint-tmp" in name for name in names(workdir)),
        "not_good": sorted(h for h in listed.values() if h not in ("good", "set aside")),
    }


def one_kill(
    folder: pathlib.Path, epochs: int, number: int, seed: int, start_seconds: float
) -> dict[str, Any] | None:
    """Starts, kills and looks; None: the run came to its end."""
    workdir, phase = folder / "killed", PHASES[number % len(PHASES)]
    before, old_file, began = looked_at(workdir), file_number(workdir), time.monotonic()
    process = start(folder, "killed", epochs)
    try:
        killed, first_step = live(
            process,
            workdir,
            phase,
            random.Random(f"{seed} {number}"),
            old_file=old_file,
            start_seconds=start_seconds,
        )
    finally:
        process.kill()
    row = {"kill": number, "phase": phase, "seconds": round(time.monotonic() - began, 2)}
    row["first_step_seconds"] = first_step
    row |= looked_at(workdir)
    resumed = re.search(r"resumed from .*/checkpoints/(\d+)", (folder / "killed.log").read_text())
    row["resumed_from"] = int(resumed[1]) if resumed else None
    none = phase == "start" and row["reached"] == before["reached"]  # no step was taken
    row["lost"] = 0 if none else row["reached"] - row["newest"]
    row["faults"] = [
        fault
        for fault, found in {
            "a checkpoint that is listed as good does not verify": not row["verify"],
            "the newest good checkpoint is older than before": row["newest"] < before["newest"],
            "more steps lost than two save intervals": row["lost"] > 2 * SAVE_EVERY,
            "not resumed from the newest good checkpoint": (
                resumed is not None and row["resumed_from"] != before["newest"]
            ),
        }.items()
        if found
    ]
    return row if killed else None


def digest(workdir: pathlib.Path) -> str:
    """SHA-256 over all arrays of the final state."""
    folder = checkpoint.find(workdir)
    config = checkpoint.read_config(folder)
    objective = make_objective(config)
    like = set_up(config, objective, steps_per_epoch=STEPS_PER_EPOCH).like
    whole = hashlib.sha256()
    for array in jax.tree.leaves(jax.device_get(checkpoint.restore(folder, like, objective))):
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()


def metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    timed = ("images_per_second", "input_wait")
    return [
        {name: value for name, value in row.items() if name not in timed}
        for row in read_metrics(workdir / "metrics.jsonl")
    ]


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["phase     kills  left unfinished  without manifest or half deleted  lost: mean, most"]
    for phase in dict.fromkeys(PHASES):
        own = [row for row in rows if row["phase"] == phase]
        lost = [row["lost"] for row in own] or [0]
        tmp, bad = (sum(bool(row[key]) for row in own) for key in ("unfinished", "not_good"))
        lines.append(
            f"{phase:<9} {len(own):>5}  {tmp:>15}  {bad:>32}"
            f"  {sum(lost) / len(lost):>10.1f}, {max(lost):>4}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="to work in, and keep")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    folder, kills = arguments.folder.absolute(), arguments.kills
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    epochs = 1 + kills // 5  # more steps than the run takes while it is being killed

    if not (folder / "whole.done").exists():
        shutil.rmtree(folder / "whole", ignore_errors=True)
        seldom = "--config.checkpoint.every_steps=1000"  # saves cost more than all the steps
        if start(folder, "whole", epochs, seldom).wait() != 0:
            raise SystemExit(f"the run without kills failed: see {folder / 'whole.log'}")
        (folder / "whole.done").touch()

    path = folder / "kills.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    while len(rows) < kills:
        starts = [row["first_step_seconds"] for row in rows if row["first_step_seconds"]]
        row = one_kill(folder, epochs, len(rows), arguments.seed, max(starts[-3:], default=9.0))
        if row is None:
            print(f"the run ended after {len(rows)} kills", file=sys.stderr)
            break
        rows.append(row)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), file=sys.stderr, flush=True)
    if start(folder, "killed", epochs).wait() != 0:
        raise SystemExit(f"the last start failed: see {folder / 'killed.log'}")

    by_fault = collections.Counter(fault for row in rows for fault in row["faults"])
    steps = [row["step"] for row in metrics(folder / "killed")]
    result = {
        "kills": len(rows),
        "steps": len(steps),
        "faults": dict(by_fault),
        "state_equal": digest(folder / "whole") == digest(folder / "killed"),
        "metrics_equal": metrics(folder / "whole") == metrics(folder / "killed"),
        "each_step_once": steps == list(range(1, epochs * STEPS_PER_EPOCH + 1)),
        "seconds": round(sum(row["seconds"] for row in rows)),
    }
    print(table(rows), file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
