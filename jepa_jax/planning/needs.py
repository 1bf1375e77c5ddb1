"""What a run needs, found by compiling it for devices that need not be there.

Nothing is allocated and no data is read: the training step is compiled from shapes, for virtual CPU
devices or, with their own compilers, for TPUs and GPUs. See `python -m jepa_jax.train --help`.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jepa_jax.batch.spec import Shapes
from jepa_jax.config import Config
from jepa_jax.errors import UserError
from jepa_jax.models.attention import wants_fused
from jepa_jax.objectives.objective import Objective
from jepa_jax.objectives.registry import make_objective
from jepa_jax.planning.chips import CHIPS
from jepa_jax.planning.collectives import by_kind, collectives
from jepa_jax.planning.devices import compiler_options
from jepa_jax.planning.estimate import estimates, seconds
from jepa_jax.planning.kernels import kernel_estimates
from jepa_jax.training.setup import set_up


def as_on_tpu(config: Config) -> Config:
    """With the attention that a TPU would choose, which isn't there to be asked."""
    compute = config.compute
    if not wants_fused(compute.attention, compute.dtype):
        return config
    return dataclasses.replace(config, compute=dataclasses.replace(compute, attention="pallas"))


def plan(
    config: Config,
    devices: Sequence[Any],
    chip: str,
    *,
    num_images: int,
    mfu: float | None = None,
) -> dict[str, Any]:
    """Compiles the training step for these devices, and adds up what it needs.

    Args:
      devices: virtual, of a topology, or real.
      chip: a name in `CHIPS`, whose limits times and memory are held against.
      num_images: in the training set.
      mfu: share of the chip's peak that a step may reach, to estimate the run's hours from.

    Returns:
      Plain numbers, for JSON; bytes, seconds and operations unless the name says otherwise. What a
      step takes depends a little on the target blocks' size: FLOPs are the mean over the sizes;
      memory and collectives are those of the largest.

    Raises:
      UserError: an unknown chip, or a configuration that does not fit these devices.
    """
    if chip not in CHIPS:
        raise UserError(f"--chip {chip}: must be one of {', '.join(CHIPS)}")
    if mfu is not None and not 0 < mfu <= 1:
        raise UserError(f"--mfu {mfu}: must be above 0 and at most 1")
    if devices[0].platform == "tpu":
        config = as_on_tpu(config)
    objective = make_objective(config)
    if num_images < config.batch_size:
        raise UserError(
            f"config.batch_size = {config.batch_size}: the data set has only {num_images} images"
        )
    epoch_steps = num_images // config.batch_size
    setup = set_up(config, objective, steps_per_epoch=epoch_steps, devices=devices)
    state, variants = setup.like, objective.needs.variants(config.batch_size)
    largest = max((shapes for shapes, _ in variants), key=_elements)
    per_image = flops_per_example(objective, config.batch_size)
    result = {
        "chip": chip,
        "devices": len(devices),
        "compiler": devices[0].platform,
        "mesh": dict(setup.mesh.shape),
        "batch_size": config.batch_size,
        "remat": config.compute.remat,
        "scan_layers": config.compute.scan_layers,
        "steps": config.epochs * epoch_steps,
        "parameters": {name: _count(part) for name, part in state.params.items()},
        "state_bytes_per_device": _bytes_per_device(state),
        "flops_per_image": per_image,
        "flops_per_step": sum(per_image.values()) * config.batch_size,
    }
    try:
        compiled = setup.step.lower(state, largest).compile(compiler_options(devices[0]))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
        return result | {"memory_per_device": {"fits": False, "compiler_says": reason}}
    program = compiled.as_text()
    moved = by_kind(collectives(program))
    memory = _memory(compiled.memory_analysis())
    result |= {
        "collectives_per_step": moved,
        "memory_per_device": memory | {"fits": memory["peak"] <= CHIPS[chip].memory},
    }
    if (clock := CHIPS[chip].clock) and (found := estimates(program)):
        found += kernel_estimates(program, chip)
        result |= {"step_seconds_estimated_by_compiler": seconds(found, clock)}
    sent = sum((kind["sent_bytes"] for kind in moved.values()), 0.0)
    return result | _times(result, sent, mfu)


def flops_per_example(objective: Objective, batch_size: int) -> dict[str, float]:
    """Operations per example and part, on average over the shapes that a batch can have."""
    total: collections.Counter[str] = collections.Counter()
    for shapes, share in objective.needs.variants(batch_size):
        total.update({name: share * x for name, x in objective.flops(shapes).items()})
    return dict(total)


def _elements(shapes: Shapes) -> int:
    return sum(int(np.prod(x.shape)) for x in shapes.values())


def _times(result: dict[str, Any], sent: float, mfu: float | None) -> dict[str, Any]:
    """Seconds that a step takes at least, and hours of the run."""
    chip = CHIPS[result["chip"]]
    links = sent / chip.link_bandwidth
    at_least = {
        "compute": result["flops_per_step"] / (chip.peak * result["devices"]),
        # The update reads and writes the whole state, besides all that the networks do.
        "memory": 2 * result["state_bytes_per_device"] / chip.memory_bandwidth,
    }
    if result["compiler"] != "cpu":  # whose program sends more than an accelerator's would
        at_least["links"] = links
    hours = result["steps"] / 3600
    times = {
        "link_seconds_as_compiled": links,
        "step_seconds_at_least": at_least,
        "run_hours_at_peak_compute": hours * at_least["compute"],
        "run_hours_at_least": hours * max(at_least.values()),
    }
    if estimated := result.get("step_seconds_estimated_by_compiler"):
        times |= {"run_hours_estimated_by_compiler": hours * max(estimated, *at_least.values())}
    if mfu is not None:
        slowest = max(at_least["compute"] / mfu, *at_least.values())
        times |= {"mfu": mfu, "run_hours_at_mfu": hours * slowest}
    return times


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _bytes_per_device(tree: Any) -> int:
    """Bytes of one device's shares, as the shardings define them, without any padding."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _memory(analysis: Any) -> dict[str, int]:
    """Bytes on one device, as the compiler lays them out: padded to its tiles, on a TPU."""
    arguments, temporaries = analysis.argument_size_in_bytes, analysis.temp_size_in_bytes
    outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes  # of new buffers
    program = analysis.generated_code_size_in_bytes
    return {
        "arguments": arguments,
        "new_outputs": outputs,
        "temporaries": temporaries,
        "program": program,
        "peak": arguments + outputs + temporaries + program,
    }


def table(plan: dict[str, Any]) -> str:
    """A plan for people to read."""
    flops, memory = plan["flops_per_image"], plan["memory_per_device"]
    chip = CHIPS[plan["chip"]]
    parameters = ", ".join(f"{name} {n / 1e6:.1f} M" for name, n in plan["parameters"].items())
    parts = ", ".join(f"{name} {x / 1e9:.1f}" for name, x in flops.items())
    rows = [
        ("devices", f"{plan['devices']} x {plan['chip']}, compiled for {plan['compiler'].upper()}"),
        ("mesh", ", ".join(f"{axis} {n}" for axis, n in plan["mesh"].items())),
        ("images per step", f"{plan['batch_size']}; {plan['steps']} steps"),
        ("parameters", parameters),
        ("state per device", _gb(plan["state_bytes_per_device"])),
        ("GFLOP per image", f"{sum(flops.values()) / 1e9:.1f} ({parts})"),
        ("PFLOP per step", f"{plan['flops_per_step'] / 1e15:.3f}"),
    ]
    fits = f"{'fits' if memory['fits'] else 'DOES NOT FIT'} {_gb(chip.memory)}"
    if "peak" not in memory:
        rows.append(("memory per device", f"{fits}: {memory['compiler_says']}"))
        return _aligned(rows)
    rows += [
        (
            "memory per device",
            f"{_gb(memory['peak'])} at the peak: {fits} (arguments {_gb(memory['arguments'])}, "
            f"temporaries {_gb(memory['temporaries'])}; remat {plan['remat']})",
        ),
        *(
            (kind, f"{n['operations']} per step, {_gb(n['sent_bytes'])} sent by each device")
            for kind, n in plan["collectives_per_step"].items()
        ),
        (
            "seconds per step",
            "at least "
            + ", ".join(f"{x:.4f} ({what})" for what, x in plan["step_seconds_at_least"].items()),
        ),
    ]
    if "step_seconds_estimated_by_compiler" in plan:
        estimated = plan["step_seconds_estimated_by_compiler"]
        rows.append(
            ("", f"{estimated:.4f} by the compiler's estimate of its operations, links apart")
        )
    rows.append(("hours of the run", f"at least {plan['run_hours_at_least']:.1f}"))
    if "run_hours_estimated_by_compiler" in plan:
        estimated = plan["run_hours_estimated_by_compiler"]
        rows.append(("", f"{estimated:.1f} by the compiler's estimate"))
    if "mfu" in plan:
        rows.append((f"  at {plan['mfu']:.0%} of the peak", f"{plan['run_hours_at_mfu']:.1f}"))
    if plan["compiler"] == "cpu":
        note = "the CPU's compiler widens bfloat16 and has no reduce-scatter: others need less"
        rows.append(("note", note))
    if plan["compiler"] == "tpu" and plan["scan_layers"]:
        note = "faster by the estimate, longer to compile: --config.compute.scan_layers=False"
        rows.append(("note", note))
    if plan["compiler"] == "gpu":
        note = "matrix products by cuBLAS, attention by XLA; with cuDNN's there it needs less"
        rows.append(("note", note))
    return _aligned(rows)


def _aligned(rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"{name:<22}{value}" for name, value in rows)


def _gb(num_bytes: int | float) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
