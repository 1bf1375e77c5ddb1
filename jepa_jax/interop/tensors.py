"""Reading a network from another library's tensors: all of it, and nothing else."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import flax
import numpy as np

from jepa_jax.errors import UserError
from jepa_jax.interop.converted import LazyArray
from jepa_jax.interop.names import Tensor

OnBytes = Callable[[int], None]  # called with the number of bytes, as they are converted


class TensorSource(NamedTuple):
    """The tensors of one network in a file.

    Attributes:
      where: file and network, for messages.
      shapes: by name, in the file's order.
      dtypes: by name, as NumPy calls them.
      read: name -> the numbers. Called once a tensor, in any order.
    """

    where: str
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    read: Callable[[str], np.ndarray]


def check_names(
    source: TensorSource, tensors: Iterable[Tensor], *, allow_partial: bool
) -> list[str]:
    """Compares what a file has with what there must be.

    Args:
      allow_partial: go on with what fits.

    Returns:
      One line for each kind of difference; empty if there is none.

    Raises:
      UserError: a tensor is not float32; or names or shapes differ, without `allow_partial`.
    """
    for name, dtype in source.dtypes.items():
        if dtype != "float32":
            raise UserError(f"{source.where}: {name} is {dtype}: must be float32")
    expected = {tensor.name: tensor.shape for tensor in tensors}
    given = {name: tuple(s) for name, s in source.shapes.items()}
    kinds = {
        "missing": [name for name in expected if name not in given],
        "unexpected": [name for name in given if name not in expected],
        "misshapen": [
            f"{name} {given[name]}, which must be {shape}"
            for name, shape in expected.items()
            if name in given and given[name] != shape
        ],
    }
    lines = [f"{kind}: {_listed(names)}" for kind, names in kinds.items() if names]
    if lines and not allow_partial:
        raise UserError(
            f"{source.where}: {'; '.join(lines)}. --allow-partial converts what fits, and leaves "
            "the rest at its random initialisation"
        )
    return lines


def read_network(
    source: TensorSource,
    tensors: Iterable[Tensor],
    initial: Mapping[tuple[str, ...], Any],
    progress: OnBytes,
) -> dict[str, Any]:
    """Our parameters (or moments) of a network, as `LazyArray`s.

    Reading one raises a `UserError` where a number is not finite.

    Args:
      initial: path -> what our array starts from: an array, or just its shape: zeros.
      progress: is called with the number of bytes, as they are read.
    """
    # Those of another shape were reported by check_names.
    fitting = [t for t in tensors if tuple(source.shapes.get(t.name, ())) == t.shape]

    def read(path: tuple[str, ...]) -> np.ndarray:
        start = initial[path]
        # Zeros where the file has nothing: the moments of an optimizer before its first step.
        array = np.array(start) if hasattr(start, "__array__") else np.zeros(start.shape, "f4")
        for tensor in fitting:
            if tensor.path == path:
                theirs = source.read(tensor.name)
                if not np.isfinite(theirs).all():
                    raise UserError(
                        f"{source.where}: {tensor.name} has numbers that are not finite"
                    )
                tensor.store(theirs, array)
                progress(theirs.nbytes)
        return array

    return flax.traverse_util.unflatten_dict(
        {
            path: LazyArray(leaf.shape, functools.partial(read, path))
            for path, leaf in initial.items()
        }
    )


def fetch_tensors(
    arrays: Iterable[tuple[tuple[str, ...], np.ndarray]], tensors: Iterable[Tensor]
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Their tensors from our arrays (path, array), in the arrays' order."""
    tensors = list(tensors)
    for path, array in arrays:
        for tensor in tensors:
            if tensor.path == path:
                yield tensor, tensor.fetch(array)
        del array  # before the next one is read


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
