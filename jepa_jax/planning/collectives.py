"""What a compiled step sends between devices, read from the program that the compiler emitted."""

import math
import re
from typing import NamedTuple

from jepa_jax.planning.program import operations, source

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_OPERATION = re.compile(rf"^\s*(?:ROOT )?%?\S+ = (.+?) ({'|'.join(_KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")
_BITS = re.compile(r"\d+")


class Collective(NamedTuple):
    """One operation between devices, as it is each time a step is taken.

    Attributes:
      kind: all-reduce, all-gather, reduce-scatter, all-to-all or collective-permute.
      shapes: of its results on one device.
      payload: bytes of its whole arrays: of the results, and of what a scatter scatters.
      times: how often it is done per step: more than once in a loop over layers.
      group: devices that take part together.
      source: where in the program it comes from, as JAX names it; or, with newer compilers, only
        the argument that it moves.
      readers: the sources of what its results are for, if `source` is an argument.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    payload: int
    times: int
    group: int
    source: str
    readers: tuple[str, ...] = ()

    @property
    def sent(self) -> float:
        """Bytes sent per device and step, if devices form a ring.

        An all-reduce of S bytes among n devices sends 2 S (n - 1) / n, a gather or a scatter half
        of that (Patarasuk & Yuan, 2009).
        """
        if self.kind == "collective-permute":
            return self.payload * self.times
        share = (self.group - 1) / self.group
        return self.payload * self.times * share * (2 if self.kind == "all-reduce" else 1)


def collectives(program: str) -> list[Collective]:
    """All operations between devices in the text of a compiled program, `compiled.as_text()`."""
    found = []
    for line, computation, lines, times in operations(program):
        # The TPU's compiler spreads a collective over several fusions, each of which repeats it:
        # one that starts it, some that go on with it beside other work, one that ends it.
        if not (match := _OPERATION.match(line)) or _repeats(computation, lines):
            continue
        one = _parse(line, match, times)
        # Its reduce-scatter is a fusion of an all-reduce and the slice that is kept.
        if computation.startswith("all-reduce-scatter"):
            one = one._replace(kind="reduce-scatter", shapes=_shapes(lines[-1]))
        if one.source and not one.source.startswith("jit("):
            one = one._replace(readers=_readers(line, lines))
        found.append(one)
    return found


def _repeats(computation: str, lines: list[str]) -> bool:
    return computation.startswith("async_collective_fusion") or any(
        '"AsyncCollectiveDone"' in line for line in lines
    )


def by_kind(found: list[Collective]) -> dict[str, dict[str, int | float]]:
    """Totals per step: kind -> operations, payload and sent bytes."""
    totals: dict[str, dict[str, int | float]] = {}
    for one in found:
        total = totals.setdefault(one.kind, {"operations": 0, "payload_bytes": 0, "sent_bytes": 0})
        total["operations"] += one.times
        total["payload_bytes"] += one.payload * one.times
        total["sent_bytes"] += one.sent
    return totals


def _parse(line: str, match: re.Match, times: int) -> Collective:
    kind, arrays, group = match[2], _ARRAY.findall(match[1]), _group_size(line)
    if match[3] and kind in ("all-gather", "reduce-scatter", "collective-permute"):
        arrays = [array for array in arrays if array != ("u32", "")]  # the TPU's semaphores
        arrays = arrays[len(arrays) // 2 :]  # in front of an asynchronous result is its operand
    shapes = tuple(_shape(dims) for _, dims in arrays)
    payload = sum(
        math.prod(shape) * _num_bytes(dtype)
        for (dtype, _), shape in zip(arrays, shapes, strict=True)
    )
    if kind == "reduce-scatter":  # whose result is one device's share
        payload *= group
    return Collective(kind, shapes, payload, times, group, source(line))


def _readers(line: str, lines: list[str]) -> tuple[str, ...]:
    """Sources of the operations that read a line's result, or a copy of it in another layout."""
    name = re.escape(line.split(" = ")[0].split()[-1].lstrip("%"))
    found: set[str] = set()
    for reader in lines:
        if reader is not line and re.search(rf"[(\s]%?{name}[,)]", reader):
            is_copy = source(reader) in ("", source(line))
            found.update(_readers(reader, lines) if is_copy else [source(reader)])
    return tuple(sorted(found))


def _num_bytes(dtype: str) -> int:
    bits = _BITS.search(dtype)  # pred has none in its name
    return int(bits[0]) // 8 if bits else 1


def _shape(dims: str) -> tuple[int, ...]:
    return tuple(int(n) for n in dims.split(",") if n)


def _shapes(line: str) -> tuple[tuple[int, ...], ...]:
    """Shapes of an operation's results: all arrays in front of its name and arguments."""
    results = re.split(r" [\w-]+\(%", line.split(" = ", 1)[1])[0]
    return tuple(_shape(dims) for _, dims in _ARRAY.findall(results))


def _group_size(line: str) -> int:
    """Devices in each group of an operation, in any of XLA's three notations."""
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):  # {{0,1},{2,3}}
        return match[1].count(",") + 1
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):  # [groups,size]<=...
        return int(match[1])
    match = re.search(r"replica_groups=mesh\[(.*?)\].*?\{(.*?)\}", line)  # mesh['a'=2,'b'=4] {'a'}
    if not match:
        return 1
    sizes = dict(re.findall(r"('\w+')=(\d+)", match[1]))
    parts = re.findall(r"('\w+')(?::\(\d+\)(\d+))?", match[2])  # 'b':(1)2 is a part of an axis
    return math.prod(int(part or sizes[axis]) for axis, part in parts)
