"""Reading a network from another library's tensors: all of it, and nothing else."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax
import numpy as np

from jepa_jax.errors import UserError
from jepa_jax.interop.names import Arrays, Tensor


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
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Our parameters (or moments) of a network.

    Args:
      initial: path -> what our array starts from: an array, or just its shape where the file has
        all of it.
      progress: is told of bytes as they are read.

    Raises:
      UserError: a number is not finite.
    """
    arrays: Arrays = {
        path: np.array(leaf) if hasattr(leaf, "__array__") else np.zeros(leaf.shape, leaf.dtype)
        for path, leaf in initial.items()
    }
    for tensor in tensors:
        if tuple(source.shapes.get(tensor.name, ())) != tensor.shape:
            continue  # reported by check_names
        theirs = source.read(tensor.name)
        if not np.isfinite(theirs).all():
            raise UserError(f"{source.where}: {tensor.name} has numbers that are not finite")
        tensor.store(theirs, arrays)
        progress(theirs.nbytes)
    return flax.traverse_util.unflatten_dict(arrays)


def fetch_all(
    tensors: Iterable[Tensor], arrays: Arrays, progress: Callable[[int], None]
) -> dict[str, np.ndarray]:
    """Their tensors from our arrays, which are let go of one by one: the memory is needed."""
    fetched, tensors = {}, list(tensors)
    for path in {tensor.path: None for tensor in tensors}:
        for tensor in tensors:
            if tensor.path == path:
                fetched[tensor.name] = tensor.fetch(arrays)
                progress(fetched[tensor.name].nbytes)
        del arrays[path]
    return {tensor.name: fetched[tensor.name] for tensor in tensors}


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
