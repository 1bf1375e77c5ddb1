"""How long a step's operations take by the TPU compiler's own cost model, and which ones.

The compiler writes an estimate of its cycles beside each fusion, product and copy. Nothing runs: it
is what the compiler believes when it chooses between forms of a program, without what is sent
between chips, and without waiting. It cannot see inside a custom call, such as a Pallas kernel.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from jepa_jax.planning.program import operations, source

GROUPS = (
    "matrix products",
    "attention",
    "norms, activation, biases",
    "loop over blocks",
    "casts and layout",
    "optimizer and averages",
    "other",
)
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_KIND = re.compile(r" ([a-z][a-z\d-]*)\(")
_RESULT = re.compile(r" = (\S+) [a-z]")
_LAYOUT = ("copy", "copy-start", "convert", "transpose", "reshape", "slice", "broadcast", "bitcast")
_MOVES = ("convert_element_type", "transpose", "reshape", "squeeze", "slice", "concatenate")
_LOOP = ("dynamic_index_in_dim", "dynamic_update_index_in_dim", "dynamic_slice", "dynamic_update")


class Estimate(NamedTuple):
    """One operation.

    Attributes:
      cycles: each time that it is done.
      times: how often, per step.
      kind: fusion, copy, convolution, …
      result: type, shape and layout; "" where there are several.
      source: as JAX names it; "" if the compiler made it up.
    """

    cycles: int
    times: int
    kind: str
    result: str
    source: str

    @property
    def group(self) -> str:
        """One of GROUPS, by the operation that gave a fusion its name."""
        path = self.source.split("/")
        if any(part in self.source for part in _LOOP) or path[-1] == "while":
            return "loop over blocks"
        if self.kind in _LAYOUT or path[-1] in _MOVES:
            return "casts and layout"
        # Flax names what is between the projections by no module of its own.
        if "attention" in path and not {"qkv", "proj"} & set(path):
            return "attention"
        if path[-1] in ("dot_general", "conv_general_dilated"):
            return "matrix products"
        if not self.source:
            return "other"
        if "jvp(" not in self.source:
            return "optimizer and averages"
        if path[-1] in ("gather", "scatter-add", "select_n"):
            return "other"
        return "norms, activation, biases"


def estimates(program: str) -> list[Estimate]:
    """The operations of a program that was compiled for a TPU, `compiled.as_text()`.

    Operations for which the compiler has no estimate are left out: all of them, in a program that
    was compiled for something else.
    """
    found = []
    for line, _, _, times in operations(program):
        if match := _CYCLES.search(line):
            kind, result = _KIND.search(line), _RESULT.search(line)
            one = Estimate(
                cycles=int(match[1]),
                times=times,
                kind=kind[1] if kind else "",
                result=result[1] if result and not result[1].startswith("(") else "",
                source=source(line),
            )
            found.append(one)
    return found


def seconds(found: Sequence[Estimate], clock: float) -> float:
    """Of all of them, one after the other.

    Args:
      clock: cycles per second of the chip.
    """
    return sum(one.cycles * one.times for one in found) / clock


def by_group(found: Sequence[Estimate], clock: float) -> dict[str, float]:
    """Seconds of each of GROUPS."""
    return {name: seconds([one for one in found if one.group == name], clock) for name in GROUPS}
