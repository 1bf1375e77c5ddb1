"""Compiles a training step for a TPU topology, in a process of its own; see tpu_estimate.py.

Told by JSON what to compile, it writes the program to a file, and prints memory and FLOPs as JSON.
It is also run in the checkout of another commit, so it uses what has been there for long.
"""

import json
import math
import pathlib
import sys
from typing import Any

import jax

from jepa_jax.config import resolve
from jepa_jax.config.files import load_config
from jepa_jax.errors import UserError
from jepa_jax.objectives.registry import make_objective
from jepa_jax.planning import needs
from jepa_jax.training.setup import set_up

try:
    from jepa_jax.planning.devices import topology_devices
except ImportError:  # before 2026-12
    topology_devices = needs.topology_devices  # type: ignore[attr-defined]
try:  # of this checkout: another's kernel takes another time
    from jepa_jax.planning.kernels import kernel_estimates
except ImportError:  # before 2026-12 there was no kernel
    kernel_estimates = None  # type: ignore[assignment]


def compile_step(told: dict[str, Any]) -> dict[str, Any]:
    """`told`: config, overrides, topology, program (a path)."""
    config = resolve(load_config(told["config"], told["overrides"]))
    devices, chip = topology_devices(told["topology"])
    if kernel_estimates:
        config = needs.as_on_tpu(config)
    objective = make_objective(config)
    setup = set_up(config, objective, steps_per_epoch=1000, devices=devices)
    shapes = max(
        (shapes for shapes, _ in objective.needs.variants(config.batch_size)),
        key=lambda shapes: sum(math.prod(x.shape) for x in shapes.values()),
    )
    flops = config.batch_size * sum(objective.flops(shapes).values()) / len(devices)
    result = {"chip": chip, "images": config.batch_size / len(devices), "flops": flops}
    try:
        compiled = setup.step.lower(setup.like, shapes).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return result | {"does_not_fit": str(error).splitlines()[0]}
    program = compiled.as_text()
    pathlib.Path(told["program"]).write_text(program)
    memory = compiled.memory_analysis()
    return result | {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "kernels": kernel_estimates(program, chip) if kernel_estimates else [],
    }


def main() -> None:
    try:
        print(json.dumps(compile_step(json.loads(sys.argv[1]))))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
