"""Our training step against the same step in PyTorch, in turns.

    python -m benchmarks.peer_torch --size s --batch-size 16 --dtype float32 --rounds 5
    python -m benchmarks.peer_torch --size s --batch-size 16 --dtype float32 --published-masks

Three contenders, each in a process of its own: ours, and the two forms of
`benchmarks/torch_ijepa.py`, `published` and `best`. They take turns on one device, in an order that
rotates from round to round; who waits, sleeps. All get the same environment.

Equal work (the default): same weights, batch, numbers of tokens and schedules. The losses of the
first steps must agree, or the command ends with status 1: then the times would mean nothing.

Equal settings (--published-masks): the peers' masks are drawn and cut to the shortest of the batch
as the reference does it, ours as our pipeline draws them, for several batches that all
contenders go round. The target blocks of a batch have the same size for all. The compiled peer has
one program for all sizes (dynamic shapes). Every batch is used once before times are taken.

--remat and --unroll are about ours. In float32 nobody uses TF32, in bfloat16 all may. The table
goes to standard error; the last line, on standard output, is JSON. Needs no TensorFlow.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

from benchmarks.peer_masks import draw_masks
from benchmarks.peer_worker import Setup, write_batches
from benchmarks.train_step import add_step_arguments, make_batch, make_config
from jepa_jax.config import Config
from jepa_jax.errors import UserError

CONTENDERS = ("ours", "published", "best")
FIRST_STEPS = 3  # untimed; their losses must agree
NUM_BATCHES = 8  # of --published-masks
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # of a loss, relative
COMPILE_MODES = ["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
REPOSITORY = pathlib.Path(__file__).parent.parent


class DisagreementError(Exception):
    """The contenders do not compute the same thing."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_step_arguments(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="to be timed, of a turn")
    parser.add_argument("--published-masks", action="store_true", help="equal settings; see above")
    parser.add_argument(
        "--compile-mode", choices=COMPILE_MODES, default="default", help="torch.compile's, of best"
    )
    parser.add_argument(
        "--cpu-devices",
        type=int,
        default=1,
        metavar="N",
        help="on a CPU, ours divides the batch over N virtual devices (default: %(default)s)",
    )
    parser.set_defaults(fsdp=1, tensor=1)
    arguments = parser.parse_args()
    for name in ("rounds", "steps", "cpu_devices"):
        if getattr(arguments, name) < 1:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} {getattr(arguments, name)}: must be at least 1")
    if arguments.batch_size % arguments.cpu_devices:
        raise UserError(
            f"--cpu-devices {arguments.cpu_devices}: must divide --batch-size "
            f"{arguments.batch_size}"
        )
    if arguments.published_masks and arguments.target_tokens:
        raise UserError("--target-tokens: --published-masks draws them; leave one of the two out")
    return arguments


class Worker:
    """The process of one contender (`benchmarks/peer_worker.py`)."""

    def __init__(self, setup: Setup, environment: dict[str, str]):
        self.contender = setup.contender
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peer_worker"],
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.description = self.ask(vars(setup))

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with contextlib.suppress(BrokenPipeError):  # it has ended: there will be no answer
            print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(
                f"error: the process of {self.contender!r} ended with status "
                f"{self.process.wait()}; its last words are above"
            )
        return json.loads(answer)

    def end(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()  # it ends when no more requests can come
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def worker_environment(device: str, cpu_devices: int) -> dict[str, str]:
    """The same for all contenders."""
    environment = os.environ | {
        # Idle threads sleep, and leave the cores to the contender whose turn it is.
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        "KMP_BLOCKTIME": "0",
        "JAX_PLATFORMS": device,
        "XLA_PYTHON_CLIENT_MEM_FRACTION": ".45",  # of a GPU's memory; the peers share the rest
    }
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
        count = f"--xla_force_host_platform_device_count={cpu_devices}"
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {count}"
        if sys.platform == "linux":  # large pages: far fewer page faults, for JAX and PyTorch
            tunables = [environment.get("GLIBC_TUNABLES"), "glibc.malloc.hugetlb=1"]
            environment["GLIBC_TUNABLES"] = ":".join(filter(None, tunables))
    return environment


def find_device() -> str:
    """The device of all contenders: "cuda" if PyTorch sees a GPU, or "cpu"."""
    if importlib.util.find_spec("torch") is None:
        raise UserError("PyTorch is not installed: pip install -r requirements-interop.txt")
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def make_batches(
    arguments: argparse.Namespace, config: Config, target_tokens: int
) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    """Ours, and the peers'."""
    batch = make_batch(config, target_tokens)
    if not arguments.published_masks:
        return [batch], [batch]
    ours, peers = draw_masks(
        config.objective.masks, config.grid, config.batch_size, num_batches=NUM_BATCHES, seed=0
    )
    return [batch | masks for masks in ours], [batch | masks for masks in peers]


def check_losses(losses: dict[str, list[float]], tolerance: float) -> None:
    """Raises a DisagreementError unless all contenders have the same losses at every step.

    Args:
      losses: of each contender, one per step.
      tolerance: largest relative difference.
    """
    (reference, expected), *others = losses.items()
    if not np.isfinite(expected).all():
        raise DisagreementError(f"the losses of {reference} are {expected}")
    for contender, values in others:
        for step, (a, b) in enumerate(zip(values, expected, strict=True)):
            if not abs(a / b - 1) <= tolerance:
                raise DisagreementError(
                    f"the losses disagree at step {step}: {contender} {a:.7g}, "
                    f"{reference} {b:.7g}, allowed is a relative {tolerance:g}"
                )


def compare(arguments: argparse.Namespace, workers: list[Worker]) -> dict[str, dict[str, Any]]:
    """Warms up, lets the contenders take turns, and returns what each measured."""
    num_untimed = NUM_BATCHES if arguments.published_masks else FIRST_STEPS
    warm_up = {w.contender: w.ask({"untimed": num_untimed, "timed": 0}) for w in workers}
    losses = {name: answer["losses"] for name, answer in warm_up.items()}
    if arguments.published_masks:  # only the peers have the same masks
        check_losses({"ours": losses["ours"]}, 0.0)
        del losses["ours"]
    check_losses(losses, TOLERANCE[arguments.dtype])

    turns = {name: [] for name in CONTENDERS}
    # The first step of a turn gets its memory back: a GPU's is handed on after each turn, and a
    # machine may have taken a resting process's pages.
    request = {"untimed": 1, "timed": arguments.steps}
    for number in range(arguments.rounds):
        start = number % len(workers)
        for worker in workers[start:] + workers[:start]:
            turns[worker.contender].append(worker.ask(request))
        print(f"round {number + 1} of {arguments.rounds} done", file=sys.stderr)
    return {
        name: {
            "seconds_per_step": [turn["seconds"] / arguments.steps for turn in answers],
            "first_losses": warm_up[name]["losses"],
            "device_peak_bytes": answers[-1]["device_peak_bytes"],
            "process_peak_bytes": answers[-1]["process_peak_bytes"],
        }
        for name, answers in turns.items()
    }


def summarise(measured: dict[str, dict[str, Any]], batch_size: int) -> dict[str, Any]:
    """Seconds per step, images per second; and per peer its seconds over ours, round by round."""
    contenders, ratios = {}, {}
    ours = measured["ours"]["seconds_per_step"]
    for name, values in measured.items():
        seconds = values["seconds_per_step"]
        median = statistics.median(seconds)
        contenders[name] = values | {
            "seconds_per_step": {"median": round(median, 6), "lowest": round(min(seconds), 6)},
            "images_per_second": round(batch_size / median, 2),
        }
        if name != "ours":
            ratio = [theirs / own for theirs, own in zip(seconds, ours, strict=True)]
            ratios[name] = {
                "median": round(statistics.median(ratio), 3),
                "low": round(min(ratio), 3),
                "high": round(max(ratio), 3),
                "rounds": [round(r, 3) for r in ratio],
            }
    return {"contenders": contenders, "speed_of_ours_over": ratios}


def table(result: dict[str, Any]) -> str:
    lines = [f"{'':<12}{'s/step':>10}{'lowest':>10}{'img/s':>10}{'GB':>8}   its seconds / ours"]
    for name, values in result["contenders"].items():
        seconds, ratio = values["seconds_per_step"], result["speed_of_ours_over"].get(name)
        peak = values["device_peak_bytes"] or values["process_peak_bytes"]
        line = (
            f"{name:<12}{seconds['median']:>10.4f}{seconds['lowest']:>10.4f}"
            f"{values['images_per_second']:>10.2f}{peak / 1e9:>8.2f}"
        )
        if ratio:
            line += f"   {ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"
        lines.append(line)
    return "\n".join(lines)


def mean_tokens(batches: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Of an image's context, and of one of its target blocks."""
    return {
        name: float(np.mean([batch[f"{name}_index"].shape[-1] for batch in batches]))
        for name in ("context", "target")
    }


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    device = find_device()
    config, target_tokens = make_config(arguments)
    ours, peers = make_batches(arguments, config, target_tokens)
    batches = {"ours": ours, "peers": peers}
    num_steps = NUM_BATCHES + FIRST_STEPS + arguments.rounds * (arguments.steps + 1)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        for name, values in batches.items():
            write_batches(pathlib.Path(folder) / f"{name}.npz", values)
        workers = []
        for name in CONTENDERS:
            whose = "ours.npz" if name == "ours" else "peers.npz"
            setup = Setup(name, vars(arguments), device, folder, whose, num_steps)
            workers.append(Worker(setup, worker_environment(device, arguments.cpu_devices)))
            stack.callback(workers[-1].end)
        descriptions = {worker.contender: worker.description for worker in workers}
        measured = compare(arguments, workers)
    return summarise(measured, config.batch_size) | {
        "tokens": {whose: mean_tokens(values) for whose, values in batches.items()},
        "versions": descriptions["ours"]["versions"] | descriptions["best"]["versions"],
        "threads": {name: values["threads"] for name, values in descriptions.items()},
        "device": descriptions["ours"]["device"],
        "tf32": device == "cuda" and arguments.dtype != "float32",
    }


def main() -> None:
    try:
        arguments = parse_arguments()
        result = run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except DisagreementError as error:
        raise SystemExit(f"error: {error}") from None
    print(table(result), file=sys.stderr)
    print(json.dumps(vars(arguments) | result))


if __name__ == "__main__":
    main()
