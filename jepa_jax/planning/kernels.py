"""How long the TPU kernel of attention takes, into which the compiler's estimates do not see.

A TPU does one bundle of instructions a cycle. The kernel has no loop but the one over examples, so
that its cycles are the bundles that the compiler schedules for an example, times the examples,
without waiting for memory. Libtpu writes their number down when it is asked to, which it does not
document: compiled alone, in a process of its own.
"""

import json
import logging
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import NamedTuple

from jepa_jax.planning.estimate import Estimate
from jepa_jax.planning.program import operations, source

log = logging.getLogger(__name__)

_CALL = ' custom_call_target="tpu_custom_call"'
_NAME = re.compile(r"(attention_(forward|backward)_(\d+)_heads)/")
_OPERANDS = re.compile(r"operand_layout_constraints=\{(.*?)\}, \w+=")
_SHAPE = re.compile(r"(\w+)\[([\d,]+)\]")
_BUNDLES = re.compile(r"total scheduled bundles:\s+(\d+)")
_TOPOLOGY = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
_DTYPES = {"bf16": "bfloat16", "f32": "float32"}


class Kernel(NamedTuple):
    """One call of the kernel in a program.

    Attributes:
      direction: forward or backward.
      shapes: of its arrays, [B, N, heads * d] or a multiple.
    """

    direction: str
    heads: int
    dtype: str
    shapes: tuple[tuple[int, ...], ...]


def kernel_of(line: str) -> Kernel | None:
    """The kernel that an operation of a program calls; None if it is another operation."""
    if _CALL not in line or not (name := _NAME.search(line)):
        return None
    operands = _OPERANDS.search(line)
    assert operands is not None, line[:200]
    found = _SHAPE.findall(operands[1])
    shapes = tuple(tuple(int(n) for n in dims.split(",")) for _, dims in found)
    return Kernel(name[2], int(name[3]), _DTYPES[found[0][0]], shapes)


def kernel_estimates(program: str, chip: str) -> list[Estimate]:
    """The kernels of a program that was compiled for a TPU, as `planning.estimate` has them.

    Empty without kernels. Those of which libtpu does not say how many bundles they have are left
    out, with a warning.
    """
    calls = [
        (kernel, times, source(line))
        for line, _, _, times in operations(program)
        if (kernel := kernel_of(line))
    ]
    if not calls:
        return []
    asked = sorted({kernel for kernel, _, _ in calls})
    bundles = _compiled(asked, _TOPOLOGY[chip])
    if len(bundles) < len(asked):
        log.warning(
            "warning: libtpu did not say how long %d of %d kernels of attention take: "
            "their time is missing in the estimates",
            len(asked) - len(bundles),
            len(asked),
        )
    return [
        Estimate(bundles[kernel] * kernel.shapes[0][0], times, "kernel", "", where)
        for kernel, times, where in calls
        if kernel in bundles
    ]


def _compiled(kernels: list[Kernel], topology: str) -> dict[Kernel, int]:
    """The bundles of each, for one example."""
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        subprocess.run(
            [sys.executable, "-m", __spec__.name, json.dumps([topology, kernels])],
            env=os.environ
            | {"LIBTPU_INIT_ARGS": f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {flags}"},
            check=False,  # what it lacks is missed, and said
        )
        found: dict[Kernel, int] = {}
        for path in pathlib.Path(folder).glob("*schedule-analysis_final_bundles.txt"):
            text = path.read_text()
            bundles = _BUNDLES.search(text)
            if (kernel := kernel_of(text)) in kernels and bundles:
                # The largest: others are of what is around the kernel, and name it too.
                found[kernel] = max(found.get(kernel, 0), int(bundles[1]))
        return found


def _compile(topology: str, kernels: list[Kernel]) -> None:
    import jax
    from jax.sharding import SingleDeviceSharding

    from jepa_jax.models.pallas_attention import attend
    from jepa_jax.planning.devices import topology_devices

    devices, _ = topology_devices(topology)
    for kernel in kernels:
        arrays = [
            jax.ShapeDtypeStruct(shape, kernel.dtype, sharding=SingleDeviceSharding(devices[0]))
            for shape in kernel.shapes
        ]

        def forward(*qkv: jax.Array, heads: int = kernel.heads) -> jax.Array:
            return attend(qkv, tuple(x[0, 0] for x in qkv), heads)

        def backward(*arrays: jax.Array, heads: int = kernel.heads) -> object:
            *qkv, d_out = arrays
            biases = tuple(x[0, 0] for x in qkv)
            return jax.vjp(lambda *both: attend(*both, heads), tuple(qkv), biases)[1](d_out)

        jax.jit(forward if kernel.direction == "forward" else backward).lower(*arrays).compile()


if __name__ == "__main__":
    topology, told = json.loads(sys.argv[1])
    _compile(topology, [Kernel(*kernel) for kernel in told])
