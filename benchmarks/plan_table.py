"""The table of PLAN.md: each row's command is run again, and its numbers are written into the row.

    python -m benchmarks.plan_table --rows 1 15
    python -m benchmarks.plan_table              # all: an hour of two cores

Beside each row's number PLAN.md holds its arguments. The compilers of TPUs and GPUs must be
installed (`pip install libtpu jax-cuda12-plugin==VERSION`, that of jax); a row that fails stays.
"""

import argparse
import json
import pathlib
import re
import shlex
import subprocess
import sys
from typing import Any

PLAN = pathlib.Path(__file__).with_name("PLAN.md")
KINDS = ("all-reduce", "all-gather", "reduce-scatter")
_COMMAND = re.compile(r"^- (\d+[a-z]?): `(.+)`$", re.MULTILINE)
_USED = re.compile(r"Used ([\d.]+)([MG]) of")


def planned(arguments: str) -> dict[str, Any]:
    """What `train --plan` says: its last line, JSON."""
    command = [sys.executable, "-m", "jepa_jax.train", "--plan", "--mfu", "0.5"]
    done = subprocess.run(
        [*command, *shlex.split(arguments)],
        cwd=PLAN.parent.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(number: str, config: str, found: dict[str, Any]) -> str:
    """A line of the table."""
    parameters = " + ".join(f"{n / 1e6:.1f}" for n in found["parameters"].values())
    cells = [
        number,
        config,
        found["chip"],
        f"{found['devices']}",
        found["compiler"].upper(),
        " x ".join(str(n) for n in found["mesh"].values()),
        found["remat"],
        f"{parameters} M",
        f"{sum(found['flops_per_image'].values()) / 1e9:.1f}",
        f"{found['state_bytes_per_device'] / 1e9:.2f}",
    ]
    memory = found["memory_per_device"]
    if "peak" not in memory:
        used = _USED.search(memory["compiler_says"])
        said = f"{used[1]} {used[2]}iB" if used else memory["compiler_says"]
        cells += [f"**no**: {said}", *[""] * 6]
        return f"| {' | '.join(cells)} |"
    sent = [found["collectives_per_step"].get(kind, {"sent_bytes": 0}) for kind in KINDS]
    at_least = found["step_seconds_at_least"]
    bound = max(at_least, key=at_least.__getitem__)
    estimated = found.get("step_seconds_estimated_by_compiler")
    cells += [
        f"{'' if memory['fits'] else '**no**: '}{memory['peak'] / 1e9:.1f}",
        " / ".join(f"{kind['sent_bytes'] / 1e9:.2f}" for kind in sent),
        f"{at_least[bound] * 1e3:.1f} ({bound})",
        f"{found['run_hours_at_least']:.1f}",
        f"{estimated * 1e3:.0f}" if estimated else "",
        f"{found['run_hours_estimated_by_compiler']:.1f}" if estimated else "",
        f"{found['run_hours_at_mfu']:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def rewritten(text: str, number: str, line: str) -> str:
    """The text of PLAN.md with this row in place of the one that has its number.

    Raises:
      ValueError: there is not one such row.
    """
    text, replaced = re.subn(rf"^\| {number} \|.*$", lambda _: line, text, flags=re.MULTILINE)
    if replaced != 1:
        raise ValueError(f"{PLAN.name}: {replaced} rows have the number {number}")
    return text


def main() -> None:
    commands = dict(_COMMAND.findall(PLAN.read_text()))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=commands, default=list(commands), metavar="N")
    failed = []
    for number in parser.parse_args().rows:
        print(f"{number}: {commands[number]}", flush=True)
        try:
            found = planned(commands[number])
        except subprocess.CalledProcessError:  # it has said why
            failed.append(number)
            continue
        config = pathlib.Path(shlex.split(commands[number])[1]).stem
        line = row(number, config, found)
        # Read anew: another process may have rewritten other rows meanwhile.
        PLAN.write_text(rewritten(PLAN.read_text(), number, line))
        print(line, flush=True)
    if failed:
        sys.exit(f"error: rows {', '.join(failed)} failed and are as they were")


if __name__ == "__main__":
    main()
