"""For a closer look at a run: tables, programs, and the place where a NaN arose."""

import math
import pathlib
import traceback
from typing import Any

import jax
from jax.sharding import Mesh


def parameter_table(params: Any, mesh: Mesh) -> str:
    """A line for each array: path, shape, axes of the mesh that shard it, numbers per device.

    Args:
      params: arrays, or their shapes, with shardings.
    """
    rows = [("parameter", "shape", "sharded over", "numbers", "per device")]
    total = here = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        share = math.prod(leaf.sharding.shard_shape(leaf.shape))
        axes = [str(axis) if axis else "-" for axis in leaf.sharding.spec]
        rows.append(
            (
                jax.tree_util.keystr(path, simple=True, separator="/"),
                " x ".join(map(str, leaf.shape)) or "scalar",
                " x ".join(axes) or "-",
                f"{leaf.size:,}",
                f"{share:,}",
            )
        )
        total, here = total + leaf.size, here + share
    rows.append(("all", "", "", f"{total:,}", f"{here:,}"))
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if column > 2 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([f"mesh: {shape}", *lines])


def write_programs(
    folder: pathlib.Path, step: Any, state: Any, shapes: list[dict[str, jax.ShapeDtypeStruct]]
) -> None:
    """Writes the optimized program of a jitted step for each shape of batch, as text.

    Args:
      state: the step's first argument, or its shapes.
      shapes: of its second argument.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for batch in shapes:
        name = "_".join(f"{key}_{'x'.join(map(str, x.shape))}" for key, x in batch.items())
        text = step.lower(state, batch).compile().as_text()
        (folder / f"{name}.process_{jax.process_index()}.txt").write_text(text)


def describe_nan(error: FloatingPointError) -> str:
    """What JAX's search for a NaN found, and the line of this package that it came from."""
    package = str(pathlib.Path(__file__).parent.parent)
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(package)
    ]
    where = f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else "unknown"
    return f"{str(error).splitlines()[0]}, at {where}"
