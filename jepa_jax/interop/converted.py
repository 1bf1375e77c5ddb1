"""Checkpoints of other origin, written array by array.

A training run has its state in memory anyway; a converter need not. Its trees have `LazyArray`s for
leaves, each of which is read when Orbax writes it, and let go before the next one.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jepa_jax.config import Config, to_dict
from jepa_jax.config.formats import with_format
from jepa_jax.training.manifest import write_manifest

# Pieces in which an array is stored: small ones need less memory to be read.
_CHUNK_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """A float32 array that is yet to be read."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


class _OneByOne(ocp.type_handlers.NumpyHandler):
    """Orbax's writer of NumPy arrays, which by itself would hold all of them at once."""

    async def serialize(
        self,
        values: Sequence[LazyArray],
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.SaveArgs] | None = None,
    ) -> list[Any]:
        for value, info, arg in zip(values, infos, args or [None] * len(values), strict=True):
            for written in await super().serialize([value.read()], [info], arg and [arg]):
                written.result()
        return []


def write(
    folder: pathlib.Path,
    items: Iterable[tuple[str, Any]],
    *,
    config: Config,
    source: dict[str, Any],
) -> None:
    """Writes a checkpoint of other origin.

    Args:
      folder: to be made.
      items: (name, tree of `LazyArray`s or NumPy arrays).
      source: where it came from, for JSON.

    Raises:
      whatever reading a lazy array raises.
      OSError: the manifest, which comes last, can't be written.
    """
    folder = folder.absolute()
    # First what is small, as one checkpoint: that leaves the file by which Orbax knows a step.
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        jsons = {"config": with_format(to_dict(config)), "source": source}
        small = {name: ocp.args.JsonSave(value) for name, value in jsons.items()}
        checkpointer.save(folder, args=ocp.args.Composite(**small))
    registry = ocp.type_handlers.create_type_handler_registry(
        (LazyArray, _OneByOne()),
        (np.ndarray, ocp.type_handlers.NumpyHandler()),
        (jax.Array, ocp.type_handlers.ArrayHandler()),  # else Orbax warns that it is missing
    )
    for name, tree in items:
        save_args = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), tree)
        handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
        with ocp.Checkpointer(handler) as checkpointer:
            args = ocp.args.PyTreeSave(tree, save_args=save_args)
            checkpointer.save(folder / name, args=args)
    write_manifest(folder)


def read_source(folder: pathlib.Path) -> dict[str, Any]:
    """What `write` noted of a checkpoint's origin; empty for a run's own."""
    path = folder / "source" / "metadata"
    return json.loads(path.read_text()) if path.is_file() else {}
