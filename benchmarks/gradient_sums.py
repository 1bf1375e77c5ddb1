"""What it costs to sum gradients over devices in bfloat16, as programs do with `compute.dtype`.

    python -m benchmarks.gradient_sums --devices 16 64 256

One device plays all: each share of a batch gives its gradient, which is rounded to bfloat16 and
added to those before it, in bfloat16, as round a ring. That is the worst case: what a network adds
up inside may be wider. Beside it the same with sums in float32; all three from one state that some
float32 steps have led to, over the same batches, against float32 throughout. LayerNorms' gradients
are summed in float32, as compiled programs do. Relative errors (norm of the difference by the norm
of the float32 run's), as a table; the last line is JSON.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jepa_jax.config import Config, resolve
from jepa_jax.config.files import load_config
from jepa_jax.data.sources import open_source
from jepa_jax.data.stream import make_stream
from jepa_jax.objectives.objective import Clock
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training.optimizer import make_optimizer
from jepa_jax.training.schedules import make_schedules
from jepa_jax.training.state import TrainState, state_creator

Step = Callable[[TrainState, Any], tuple[TrainState, Any]]  # -> (next state, gradient)


def make_step(config: Config, steps_per_epoch: int, devices: int, summed_in: str) -> Step:
    """A training step whose batch is shared by so many devices, with the gradient it used."""
    objective = make_objective(config)
    schedules = make_schedules(config, steps_per_epoch)
    optimizer = make_optimizer(config.optimizer, schedules)
    objective_state = optax.with_extra_args_support(objective.state(schedules.horizon))

    def rounded(path: tuple[Any, ...], x: Any) -> Any:
        narrow = "norm" not in jax.tree_util.keystr(path)
        return x.astype(summed_in).astype(jnp.float32) if narrow else x

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        shares = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)

        def add(total: Any, share: Any) -> tuple[Any, Any]:
            clock = Clock(state.step, schedules.horizon)
            gradient, out = jax.grad(objective.loss, has_aux=True)(
                state.params, state.objective_state, share, key, clock
            )
            mine = jax.tree.map(lambda x: x / devices, gradient)
            mine = jax.tree_util.tree_map_with_path(rounded, mine)
            total = jax.tree.map(jnp.add, total, mine)
            return jax.tree_util.tree_map_with_path(rounded, total), out

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        gradient, out = jax.lax.scan(add, zeros, shares)
        updates, adam = optimizer.update(gradient, state.optimizer_state, state.params)
        _, average = objective_state.update(
            updates, state.objective_state, state.params, out=jax.tree.map(lambda x: x[0], out)
        )
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, adam, average), gradient

    return jax.jit(step)


def difference(tree: Any, other: Any, by: Any) -> float:
    """Norm of the difference of two trees, by the norm of a third."""
    apart = jax.tree.map(jnp.subtract, tree, other)
    return float(optax.tree.norm(apart) / optax.tree.norm(by))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/fashion_mnist.py")
    parser.add_argument("--devices", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--before", type=int, default=100, help="float32 steps to start from")
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()

    config = resolve(load_config(arguments.config, []))
    config = dataclasses.replace(config, batch_size=arguments.batch_size)
    narrow = dataclasses.replace(
        config, compute=dataclasses.replace(config.compute, dtype="bfloat16")
    )
    objective, source = make_objective(config), open_source(config.data, "train")
    stream = make_stream(
        objective.needs, config.data, source, seed=config.seed, batch_size=config.batch_size
    )
    names = list(stream.variants(0)[0][0])
    batches = [
        {name: batch[name] for name in names}
        for batch in stream.batches(0, arguments.before + arguments.steps, None)
    ]
    schedules = make_schedules(config, stream.steps_per_epoch)
    start = state_creator(
        objective,
        make_optimizer(config.optimizer, schedules),
        horizon=schedules.horizon,
        seed=config.seed,
    )()
    exact = make_step(config, stream.steps_per_epoch, 1, "float32")
    for batch in batches[: arguments.before]:
        start, _ = exact(start, batch)

    def run(step: Step) -> list[tuple[Any, Any]]:
        """(gradient, parameters) of each step."""
        state, taken = start, []
        for batch in batches[arguments.before :]:
            state, gradient = step(state, batch)
            taken.append((gradient, state.params))
        return taken

    right = run(exact)
    moved = jax.tree.map(jnp.subtract, right[-1][1], start.params)
    # Another batch's gradient: how far apart two right ones are.
    others = [difference(a, b, b) for (a, _), (b, _) in zip(right[1:], right, strict=False)]
    result: dict[str, Any] = {"between_batches": float(np.median(others)), "runs": []}
    print("| devices | summed in | first gradient, off by | after the steps, moved off by |")
    print("| --- | --- | --- | --- |")
    for devices in arguments.devices:
        for summed_in in ("float32", "bfloat16"):
            taken = run(make_step(narrow, stream.steps_per_epoch, devices, summed_in))
            off = difference(taken[0][0], right[0][0], right[0][0])
            drift = difference(taken[-1][1], right[-1][1], moved)
            result["runs"].append(
                {"devices": devices, "summed_in": summed_in, "gradient": off, "moved": drift}
            )
            print(f"| {devices} | {summed_in} | {off:.2%} | {drift:.2%} |", flush=True)
    print(f"Gradients of two batches in a row differ by {result['between_batches']:.0%}.")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
