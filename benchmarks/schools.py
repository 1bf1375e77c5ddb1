"""Every objective on the bundled clothes: one encoder, one trainer, one set of probes.

    python -m benchmarks.schools [--cores 0 1] [--seeds 0 1 2] [--only ijepa mae ...]

Two tables: equal optimizer steps, and equal arithmetic, that of I-JEPA in the first. A run is a
process of its own on one core, and a row of `--rows`; those that it has are not run again, and one
that was stopped goes on from its checkpoint: a benchmark of hours can be stopped at any time. Last
the steps take turns, for their speed. `--tune` makes the runs by which LEARNING_RATES were chosen;
`--table` prints what is there, and draws the figure beside it. What was measured is in
docs/results/schools.jsonl, and docs/results/schools.md says what to think of it.
"""

import argparse
import json
import logging
import os
import pathlib
import platform
import queue
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.schools_run import (
    CONTROLS,
    LEARNING_RATES,
    TRIED,
    configs_of,
    digest_of,
    measure,
)
from benchmarks.schools_table import figure, summary, tables, tuning_table

# Large pages, and memory that is not given back after each step: SimCLR 57 to 68 images per second
# on a core of a shared AMD EPYC, in one run each; for some more memory.
TUNABLES = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {
        "hugetlb": 1,
        "mmap_max": 0,
        "arena_max": 1,
        "trim_threshold": 8_000_000_000,
        "top_pad": 300_000_000,
    }.items()
)


def jobs_of(only: list[str], seeds: list[int], *, tune: bool) -> list[dict[str, Any]]:
    """The runs, in the order in which they are made: all objectives of a seed before the next."""
    if tune:
        return [
            {"objective": name, "budget": "tuning", "seed": 0, "lr": lr}
            for lr in TRIED
            for name in only
            if name not in CONTROLS
        ]
    runs: list[dict[str, Any]] = [
        {"objective": name, "budget": budget, "seed": seed}
        for seed in seeds
        for budget in ("steps", "flops")
        for name in only
        # I-JEPA's arithmetic is what the second table gives all.
        if not (budget == "flops" and name in ("ijepa", *CONTROLS))
    ]
    return [*runs, {"budget": "speed"}]


def missing(jobs: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs without a row of their settings."""
    asked = ((job, job | {"config": digest_of(job)}) for job in jobs)
    return [job for job, full in asked if not any(full.items() <= row.items() for row in rows)]


def run_all(
    jobs: list[dict[str, Any]], rows: pathlib.Path, out: pathlib.Path, cores: list[int]
) -> None:
    """Makes the runs that `rows` lacks, one at a time on each core."""
    compiled = out / "compiled"  # one seed's programs are the next's
    compiled.mkdir(mode=0o700, exist_ok=True)
    defaults = {"GLIBC_TUNABLES": TUNABLES, "JAX_COMPILATION_CACHE_DIR": str(compiled)}
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    for core in cores:
        free.put(core)

    def work(job: dict[str, Any]) -> str | None:
        name = name_of(job)
        core = free.get()
        worker = [sys.executable, "-m", "benchmarks.schools", "--out", str(out)]
        worker += ["--rows", str(rows), "--worker", json.dumps(job), "--cores", str(core)]
        try:
            with (out / f"{name}.log").open("a") as log:
                code = subprocess.run(worker, stderr=log, env=defaults | os.environ).returncode
        finally:
            free.put(core)  # or another thread would wait for it for ever
        return f"{name}: exit code {code}, see {out / name}.log" if code else None

    with ThreadPoolExecutor(len(cores)) as pool:
        # After Ctrl-C no further run is begun: map cancels them.
        for failure in pool.map(work, missing(jobs, read_rows(rows))):
            if failure:
                print(failure, file=sys.stderr)


def be_worker(job: dict[str, Any], rows: pathlib.Path, out: pathlib.Path, core: int) -> None:
    """One run, on one core."""
    os.sched_setaffinity(0, {core})
    single = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {single}"
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("jepa_jax").setLevel(logging.INFO)
    if job["budget"] == "speed":
        from benchmarks.schools_speed import speeds

        made = speeds(configs_of(job))
    else:
        made = [measure(job, out / "runs" / name_of(job))]
    with rows.open("a") as file:
        for row in made:
            file.write(json.dumps(row | {"config": digest_of(job)} | made_with()) + "\n")


def name_of(job: dict[str, Any]) -> str:
    """Of its log and its workdir: runs with other settings have another."""
    return "-".join(str(value) for value in (*job.values(), digest_of(job)))


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """What was measured; of a run that was made again, the last."""
    lines = path.read_text().splitlines() if path.exists() else []

    def run_of(row: dict[str, Any]) -> tuple[Any, ...]:
        tried = row["lr"] if row["budget"] == "tuning" else None
        return row["objective"], row["budget"], row.get("seed"), tried

    return list({run_of(row): row for row in map(json.loads, lines)}.values())


def made_with() -> dict[str, str]:
    """What a row is a row of: the commit, the processor, JAX."""
    import jax

    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
    )
    cpu = re.search(r"^model name\s*: (.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.M)
    return {
        "commit": git.stdout.strip(),
        "processor": cpu[1] if cpu else platform.machine(),
        "jax": jax.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, default="runs/schools", help="logs, workdirs")
    parser.add_argument("--rows", type=pathlib.Path, help="default: OUT/rows.jsonl")
    names = [*LEARNING_RATES, *CONTROLS]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cores", type=int, nargs="+", default=sorted(os.sched_getaffinity(0)))
    parser.add_argument("--tune", action="store_true", help="the runs for LEARNING_RATES instead")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    rows = arguments.rows or arguments.out / "rows.jsonl"
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.worker:
        be_worker(json.loads(arguments.worker), rows, arguments.out, arguments.cores[0])
        return
    if arguments.table and not rows.is_file():
        parser.error(f"--rows {rows}: no such file, and so nothing to print")
    jobs = jobs_of(arguments.only, arguments.seeds, tune=arguments.tune)
    if not arguments.table:
        run_all(jobs, rows, arguments.out, arguments.cores)
    made = read_rows(rows)
    lacking = missing(jobs, made)
    if lacking:
        names = ", ".join("-".join(map(str, job.values())) for job in lacking)
        print(f"without a row of today's settings: {names}", file=sys.stderr)
    if arguments.tune:
        print(tuning_table(made))
    else:
        print(f"{summary(made)}\n\n{tables(made)}")
        figure(made, rows.with_suffix(".png"))
    if lacking and not arguments.table:
        sys.exit(1)


if __name__ == "__main__":
    main()
