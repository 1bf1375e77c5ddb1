"""One contender of `benchmarks.peer_torch`, in a process of its own that waits to be told.

Each request is a line of JSON on standard input, each answer a line of JSON on standard output. The
first request says what to set up (`Setup`). After it, {"untimed": a, "timed": b} is answered by the
losses of all those steps and by the seconds that the timed ones took together.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from benchmarks.train_step import make_config
from jepa_jax.config import Config
from jepa_jax.objectives.ema import momentum_at
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training.setup import set_up
from jepa_jax.training.sharding import batch_sharding


@dataclasses.dataclass(frozen=True)
class Setup:
    contender: str  # "ours", "published" or "best"
    arguments: dict[str, Any]  # of the command
    device: str  # "cpu" or "cuda"
    folder: str  # of the contenders' common files; ours writes the weights and the schedules
    batches: str  # file in it: the batches to go round
    num_steps: int  # that there will be


class Ours:
    """The step that `jepa_jax.train` runs."""

    def __init__(self, config: Config, setup: Setup, batches: list[dict[str, np.ndarray]]):
        if setup.device == "cuda" and config.compute.dtype == "float32":
            jax.config.update("jax_default_matmul_precision", "highest")  # no TF32
        self.device = jax.devices()[0]
        devices = jax.devices()[: setup.arguments["cpu_devices"] if setup.device == "cpu" else 1]
        run = set_up(config, make_objective(config), steps_per_epoch=1000, devices=devices)
        self.state, self.train_step = run.create(), run.step
        params = jax.device_get(self.state.params)
        np.savez(pathlib.Path(setup.folder) / "weights.npz", **flatten_dict(params, sep="/"))
        steps = jnp.arange(setup.num_steps)
        np.savez(
            pathlib.Path(setup.folder) / "schedules.npz",
            learning_rate=run.schedules.learning_rate(steps),
            weight_decay=run.schedules.weight_decay(steps),
            momentum=momentum_at(config.objective.ema, steps, run.schedules.horizon),
        )

        self.batches = [jax.device_put(batch, batch_sharding(run.mesh)) for batch in batches]

    def step(self, number: int) -> jax.Array:
        batch = self.batches[number % len(self.batches)]
        self.state, metrics = self.train_step(self.state, batch)
        return metrics["loss"]

    def wait(self) -> None:
        jax.block_until_ready(self.state)

    def release(self) -> None:
        """JAX keeps the share of the memory that the command gives it."""

    def peak_memory(self) -> int | None:
        return (self.device.memory_stats() or {}).get("peak_bytes_in_use")

    def describe(self) -> dict[str, Any]:
        return {
            "versions": {"jax": jax.__version__},
            "device": self.device.device_kind,
            "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        }


class Peer:
    """The step in PyTorch."""

    def __init__(self, config: Config, setup: Setup, batches: list[dict[str, np.ndarray]]):
        import torch

        from benchmarks.torch_ijepa import TorchStep, from_ours

        self.torch, self.on_gpu = torch, setup.device == "cuda"
        if self.on_gpu:  # as JAX: no TF32 in float32; else it may do what bfloat16 leaves
            tf32 = config.compute.dtype != "float32"
            torch.set_float32_matmul_precision("high" if tf32 else "highest")
            torch.backends.cudnn.allow_tf32 = tf32
        self.trainer = TorchStep(
            config,
            setup.contender,
            device=setup.device,
            compile_mode=setup.arguments["compile_mode"],
        )
        folder = pathlib.Path(setup.folder)
        params = unflatten_dict(dict(np.load(folder / "weights.npz")), sep="/")
        self.trainer.load(from_ours(params, config))
        self.schedules = dict(np.load(folder / "schedules.npz"))
        self.batches = [self.trainer.to_device(batch) for batch in batches]
        if setup.arguments["published_masks"]:
            # Their sizes change from batch to batch: one program for all, not one for each.
            for batch in self.batches:
                torch._dynamo.maybe_mark_dynamic(batch["context_index"], 1)
                torch._dynamo.maybe_mark_dynamic(batch["target_index"], 2)

    def step(self, number: int) -> Any:
        return self.trainer.step(
            self.batches[number % len(self.batches)],
            lr=float(self.schedules["learning_rate"][number]),
            weight_decay=float(self.schedules["weight_decay"][number]),
            momentum=float(self.schedules["momentum"][number]),
        )

    def wait(self) -> None:
        if self.on_gpu:
            self.torch.cuda.synchronize()

    def release(self) -> None:
        """Leaves memory that is not in use to the other peer."""
        if self.on_gpu:
            self.torch.cuda.empty_cache()

    def peak_memory(self) -> int | None:
        return self.torch.cuda.max_memory_allocated() if self.on_gpu else None

    def describe(self) -> dict[str, Any]:
        name = self.torch.cuda.get_device_name() if self.on_gpu else "cpu"
        return {
            "versions": {"torch": self.torch.__version__},
            "device": name,
            "threads": self.torch.get_num_threads(),
        }


def take_steps(contender: Ours | Peer, first: int, *, untimed: int, timed: int) -> dict[str, Any]:
    """Waits for the device once, at the end: a training loop does not wait for each step."""
    losses = [contender.step(first + i) for i in range(untimed)]
    contender.wait()
    start = time.perf_counter()
    losses += [contender.step(first + untimed + i) for i in range(timed)]
    contender.wait()
    seconds = time.perf_counter() - start
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = {
        "losses": [float(loss) for loss in losses],
        "seconds": seconds,
        "device_peak_bytes": contender.peak_memory(),
        "process_peak_bytes": process * (1 if sys.platform == "darwin" else 1024),
    }
    contender.release()
    return answer


def write_batches(path: pathlib.Path, batches: list[dict[str, np.ndarray]]) -> None:
    np.savez(path, **{f"{i}/{k}": x for i, batch in enumerate(batches) for k, x in batch.items()})


def read_batches(path: pathlib.Path) -> list[dict[str, np.ndarray]]:
    nested = unflatten_dict(dict(np.load(path)), sep="/")
    return [nested[str(i)] for i in range(len(nested))]


def requests() -> Iterator[dict[str, Any]]:
    for line in iter(sys.stdin.readline, ""):
        yield json.loads(line)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=answers, flush=True)

    queue = requests()
    setup = Setup(**next(queue))
    config, _ = make_config(argparse.Namespace(**setup.arguments))
    batches = read_batches(pathlib.Path(setup.folder) / setup.batches)
    contender = (Ours if setup.contender == "ours" else Peer)(config, setup, batches)
    answer(contender.describe())
    first = 0
    for request in queue:
        answer(take_steps(contender, first, **request))
        first += request["untimed"] + request["timed"]


if __name__ == "__main__":
    main()
