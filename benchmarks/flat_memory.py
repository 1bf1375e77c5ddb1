"""Memory, open files and threads of a run over 20,000 steps: does any of them grow?

    python -m benchmarks.flat_memory --folder /tmp/flat_memory

A tiny run in a process of its own, with a checkpoint every 1,000 steps, looked at from outside, in
/proc, every 500 steps. The last line is JSON.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

from benchmarks.kill_loop import FIELDS, last_row

BATCH, STEPS_PER_EPOCH = 16, 625  # of 10,000 images


def look(pid: int) -> dict[str, float]:
    """What the system says of a process."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return {
        "resident_mb": round(int(status["VmRSS"].split()[0]) / 1024, 1),
        "open_files": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(status["Threads"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="must not exist")
    parser.add_argument("--epochs", type=int, default=32, help=f"of {STEPS_PER_EPOCH} steps")
    parser.add_argument("--every", type=int, default=500, help="steps between two looks")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True)
    command = [sys.executable, "-m", "jepa_jax.train", "--config", "configs/fashion_mnist.py"]
    command += [
        *FIELDS,
        f"--config.batch_size={BATCH}",
        f"--config.epochs={arguments.epochs}",
        "--config.logging.every_steps=50",
        "--config.checkpoint.every_steps=1000",
        f"--workdir={arguments.folder}",
    ]
    end, rows, began = arguments.epochs * STEPS_PER_EPOCH, [], time.monotonic()
    print(f"{'step':>6} {'MB':>8} {'files':>6} {'threads':>8} {'seconds':>8}")
    with (arguments.folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, stdout=log, stderr=log
        )
    try:
        for step in range(arguments.every, end, arguments.every):
            while last_row(arguments.folder) < step:
                if process.poll() is not None:
                    raise SystemExit(f"the run ended early: see {arguments.folder / 'log'}")
                time.sleep(0.05)
            row = {"step": step, **look(process.pid)}
            rows.append(row | {"seconds": round(time.monotonic() - began, 1)})
            print(
                "{step:>6} {resident_mb:>8} {open_files:>6} {threads:>8} {seconds:>8}".format(
                    **rows[-1]
                ),
                flush=True,
            )
        if process.wait() != 0:
            raise SystemExit(f"the run failed: see {arguments.folder / 'log'}")
    finally:
        process.kill()
    print(json.dumps({"steps": end, "rows": rows}))


if __name__ == "__main__":
    main()
