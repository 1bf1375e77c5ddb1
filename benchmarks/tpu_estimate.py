"""Where a training step's time goes on a TPU, by the estimates of the TPU's own compiler.

    python -m benchmarks.tpu_estimate --topology v5e:4x4 --config configs/in1k_vitb16_ep600.py
    python -m benchmarks.tpu_estimate --topology v5e:4x4 --config A.py --config B.py
    python -m benchmarks.tpu_estimate --topology v5e:4x4 --config A.py --against main~5

No TPU is needed, but its compiler: `pip install libtpu`. Nothing is measured: it is what the
compiler believes, of a step with the largest target blocks. Fields are set by --config.a.b=value,
for all configs. A compilation takes minutes of two cores. See jepa_jax/planning/estimate.py.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

from jepa_jax.planning.chips import CHIPS
from jepa_jax.planning.collectives import by_kind, collectives
from jepa_jax.planning.estimate import Estimate, by_group, estimates, seconds

REPOSITORY = pathlib.Path(__file__).parent.parent


class Case(NamedTuple):
    """A compiled step.

    Attributes:
      title: of its column.
      told: by tpu_compile.py: chip, images and FLOPs a chip, bytes; or why it does not fit.
      operations: with the compiler's estimates; none, if it does not fit.
      sent: bytes that a chip sends per step.
    """

    title: str
    told: dict[str, Any]
    operations: list[Estimate]
    sent: float


def compiled(
    title: str, config: str, overrides: list[str], topology: str, checkout: pathlib.Path
) -> Case:
    """Compiles in a process of its own, with the package as it is in a checkout."""
    with tempfile.TemporaryDirectory() as folder:
        program = pathlib.Path(folder) / "program.txt"
        asked = {"config": config, "overrides": overrides, "topology": topology}
        worker = pathlib.Path(__file__).with_name("tpu_compile.py")
        paths = [str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])]
        done = subprocess.run(
            [sys.executable, str(worker), json.dumps(asked | {"program": str(program)})],
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            sys.exit(done.returncode)  # it has said why
        told = json.loads(done.stdout.splitlines()[-1])
        text = program.read_text() if program.exists() else ""
    operations = estimates(text)
    if text and not operations:
        print(f"error: {title}: the compiled program holds no estimates", file=sys.stderr)
        sys.exit(2)
    operations += [Estimate(*one) for one in told.get("kernels", [])]
    sent = sum(kind["sent_bytes"] for kind in by_kind(collectives(text)).values())
    return Case(title, told, operations, sent)


def cells(case: Case) -> dict[str, str]:
    """Of its column: milliseconds by group, the peak's share, memory."""
    told, chip = case.told, CHIPS[case.told["chip"]]
    at_peak, first = told["flops"] / chip.peak, {"images a chip": f"{told['images']:g}"}
    if "does_not_fit" in told:
        return first | {"estimated, without links": f"does not fit: {told['does_not_fit']}"}
    assert chip.clock is not None  # a topology is one of TPUs
    total, memory = seconds(case.operations, chip.clock), told["arguments"] + told["temporaries"]
    return first | {
        "estimated, without links": f"{total * 1e3:.1f} ms",
        "at the peak": f"{at_peak * 1e3:.1f} ms",
        "share of the peak": f"{at_peak / total:.0%}",
        **{
            f"- {group}": f"{part * 1e3:.1f} ms, {part / total:.0%}"
            for group, part in by_group(case.operations, chip.clock).items()
        },
        "links, at their peak": f"{case.sent / chip.link_bandwidth * 1e3:.1f} ms",
        "arguments and temporaries": f"{told['arguments'] / 1e9:.2f} + "
        f"{told['temporaries'] / 1e9:.2f} GB{'' if memory <= chip.memory else ', too much'}",
    }


def table(cases: list[Case]) -> str:
    """A column for each case."""
    columns = [cells(case) for case in cases]
    names = dict.fromkeys(name for column in columns for name in column)
    lines = [f"| | {' | '.join(case.title for case in cases)} |", "|---" * (len(cases) + 1) + "|"]
    for name in names:
        lines.append(f"| {name} | {' | '.join(column.get(name, '') for column in columns)} |")
    return "\n".join(lines)


def longest(case: Case, number: int) -> str:
    """The operations that take longest per step; those of unrolled blocks are one, if alike."""
    clock = CHIPS[case.told["chip"]].clock
    assert clock is not None
    times: collections.Counter[Estimate] = collections.Counter()
    for one in case.operations:
        times[one._replace(times=0)] += one.times
    alike = [one._replace(times=n) for one, n in times.items()]
    found = sorted(alike, key=lambda one: -one.cycles * one.times)[:number]
    lines = [
        f"{one.cycles * one.times / clock * 1e3:7.2f} ms  x {one.times:<3d} {one.group:<26}"
        f"{one.kind} {one.result} {one.source}"
        for one in found
    ]
    return "\n".join([f"{case.title}:", *lines])


@contextlib.contextmanager
def checkout_of(revision: str) -> Iterator[pathlib.Path]:
    """A working tree of another commit, for a while."""
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder) / "tree"
        git = ["git", "-C", str(REPOSITORY), "worktree"]
        done = subprocess.run(
            [*git, "add", "--quiet", "--detach", str(tree), revision],
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            print(f"error: --against {revision}: {done.stderr.strip()}", file=sys.stderr)
            sys.exit(2)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", action="append", required=True, help="may be given twice")
    parser.add_argument("--topology", required=True, help="such as v5e:4x4")
    parser.add_argument("--against", metavar="REV", help="the first config at this commit, too")
    parser.add_argument("--longest", type=int, default=12, help="operations that are listed")
    arguments, overrides = parser.parse_known_args()
    for unknown in overrides:
        if not unknown.startswith("--config."):
            parser.error(f"unrecognized argument: {unknown}")
    topology = arguments.topology
    chip = CHIPS.get(topology.partition(":")[0])
    if chip is not None and chip.clock is None:
        parser.error(f"--topology {topology}: XLA's GPU compiler makes no estimates")
    cases = [
        compiled(pathlib.Path(config).stem, config, overrides, topology, REPOSITORY)
        for config in arguments.config
    ]
    if arguments.against:
        with checkout_of(arguments.against) as tree:
            config, title = arguments.config[0], f"{cases[0].title} at {arguments.against}"
            cases.append(compiled(title, config, overrides, topology, tree))
    print(f"{topology}, by the compiler's estimates; nothing was measured\n")
    print(table(cases))
    for case in cases:
        print(f"\n{longest(case, arguments.longest)}")


if __name__ == "__main__":
    main()
