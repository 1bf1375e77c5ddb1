"""The text of a compiled program: its operations, and how often each is done per step."""

import collections
import re
from collections.abc import Iterator
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{\s*$")
_CALLED = re.compile(r"\b(body|calls|to_apply|branch_computations)=\{?([^,}\s]+(?:, %[^,}\s]+)*)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r" while\(.*condition=%?([^,\s]+)")
_LIMIT = re.compile(r"^\s*%?\S+ = s32\[\]\S* constant\((\d+)\)")
_SOURCE = re.compile(r'op_name="([^"]*)"')


class Operation(NamedTuple):
    """A line of a computation that the program enters.

    Attributes:
      line: its text.
      computation: the name of the computation.
      lines: all of the computation's.
      times: how often it is done per step: more than once in a loop over layers.
    """

    line: str
    computation: str
    lines: list[str]
    times: int


def operations(program: str) -> Iterator[Operation]:
    """All that a program does, `compiled.as_text()`, in the order of its text; fusions' parts too.

    Of a conditional, the operations of all branches.
    """
    lines_of, entry, name = collections.defaultdict(list), "", ""
    for line in program.splitlines():
        if match := _COMPUTATION.match(line):
            name = match[2]
            entry = name if match[1] else entry
        elif name and line.strip() not in ("", "}"):
            lines_of[name].append(line)

    def visit(computation: str, times: int) -> Iterator[Operation]:
        lines = lines_of[computation]
        for line in lines:
            yield Operation(line, computation, lines, times)
            if " async-done(" in line or " async-update(" in line:  # entered at its async-start
                continue
            trips = _trips(line, lines_of)
            for how, called in _CALLED.findall(line):
                for each in called.split(", "):
                    yield from visit(each.lstrip("%"), times * (trips if how == "body" else 1))

    return visit(entry, 1)


def source(line: str) -> str:
    """Where in the program an operation comes from, as JAX names it; "" if it is not said."""
    match = _SOURCE.search(line)
    return match[1] if match else ""


def _trips(line: str, lines_of: dict[str, list[str]]) -> int:
    """How often a loop's body runs; 1 for any other operation."""
    if match := _TRIPS.search(line):
        return int(match[1])
    if not (match := _CONDITION.search(line)):
        return 1
    # The TPU's compiler does not say. A `lax.scan` counts from 0 while it is less than a constant.
    condition = lines_of[match[1]]
    limits = [int(limit[1]) for each in condition if (limit := _LIMIT.match(each))]
    counts_up = any("direction=LT" in each for each in condition)
    return limits[0] if counts_up and len(limits) == 1 else 1
