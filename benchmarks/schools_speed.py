"""The steps of all objectives, in turns, in one process: images per second, and memory.

A part of benchmarks/schools.py. Speeds of runs that were made at different times, beside other
jobs, do not compare; those of steps that take turns do.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from benchmarks.train_step import memory_bytes
from jepa_jax.data.sources import open_source
from jepa_jax.data.stream import make_stream
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training.setup import set_up
from jepa_jax.training.sharding import batch_sharding

BATCHES = 4  # I-JEPA's block sizes differ from step to step
ROUNDS = 3


def speeds(configs: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each objective: images per second of the step alone, the median of the rounds.

    `memory` is what the compiled step needs: state, batch and temporaries, in bytes. Real batches
    of the run, which are drawn before.
    """
    turns = {name: _turn(config) for name, config in configs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in configs}
    for number in range(ROUNDS + 1):  # the first warms up
        for name, (run, _) in turns.items():
            start = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return [
        {
            "objective": name,
            "budget": "speed",
            "images_per_second": BATCHES * config.batch_size / statistics.median(seconds[name]),
            "seconds": [round(value, 4) for value in seconds[name]],  # of a round
            "memory": turns[name][1],
        }
        for name, config in configs.items()
    ]


def _turn(config: Any) -> tuple[Callable[[], None], int]:
    """A function that takes a step on each of the batches, and bytes."""
    objective, source = make_objective(config), open_source(config.data, "train")
    size = config.batch_size
    stream = make_stream(objective.needs, config.data, source, seed=config.seed, batch_size=size)
    setup = set_up(config, objective, steps_per_epoch=1)
    sharding = batch_sharding(setup.mesh)
    batches = [
        jax.device_put({k: v for k, v in batch.items() if k not in stream.counted}, sharding)
        for batch in stream.batches(0, BATCHES, None)
    ]
    state = setup.create()
    compiled: dict[Any, Any] = {}

    def step_for(batch: dict[str, jax.Array]) -> Any:
        shapes = tuple(array.shape for array in batch.values())
        if shapes not in compiled:
            compiled[shapes] = setup.step.lower(state, batch).compile()
        return compiled[shapes]

    steps = [step_for(batch) for batch in batches]

    def run() -> None:
        nonlocal state
        for step, batch in zip(steps, batches, strict=True):
            state, _ = step(state, batch)
        jax.block_until_ready(state)

    return run, max(memory_bytes(step) for step in compiled.values())
