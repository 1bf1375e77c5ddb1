"""Reading the items of a checkpoint: trees of arrays that Orbax wrote."""

import contextlib
import errno
import gc
import logging
import os
import pathlib
import re
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jepa_jax.config import differences
from jepa_jax.errors import DamagedError, UnreadableError, UserError
from jepa_jax.training.manifest import RETRY_AFTER

# What TensorStore and Orbax say when bytes are not what was written. Anything else (a full disk, no
# permission, a network that is down) says nothing about the checkpoint itself.
_DAMAGE = re.compile(
    r"DATA_LOSS|CRC|checksum|corrupt|decod|decompress|truncat|zstd|unexpected end|NOT_FOUND|"
    r"No such file|Failed to load",
    re.IGNORECASE,
)
_READ_ERROR = os.strerror(errno.EIO)


def read_item(folder: pathlib.Path, like: Any, *, under: tuple[str, ...] = ()) -> Any:
    """One item of a checkpoint, with the shapes, types and shardings of `like`.

    Args:
      like: the whole item.
      under: only what is below this path is read, and returned.

    Raises:
      UserError: it is incomplete, damaged, of another architecture, or can't be read.
    """
    # Of several processes, each would have to read again.
    for pause in RETRY_AFTER if jax.process_count() == 1 else ():
        with contextlib.suppress(UnreadableError):
            return _read_item(folder, like, under)
        time.sleep(pause)
    return _read_item(folder, like, under)


def _read_item(folder: pathlib.Path, like: Any, under: tuple[str, ...]) -> Any:
    with _in_one_line(folder):
        _check_same(folder, like)
        if not under:
            return ocp.StandardCheckpointer().restore(folder, like)
        # The standard handler knows no placeholders, so the shardings are said here.
        wanted = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if _names(path)[: len(under)] == under else ocp.PLACEHOLDER,
            like,
        )
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda leaf: leaf.sharding or device, like)
        arguments = ocp.checkpoint_utils.construct_restore_args(like, shardings)
        read = ocp.PyTreeCheckpointer().restore(
            folder, args=ocp.args.PyTreeRestore(wanted, restore_args=arguments)
        )
        for name in under:
            read = read[name]
        return read


def read_arrays(
    folder: pathlib.Path, like: Any, *, under: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """The arrays of one item, one in memory at a time.

    Args:
      like: shapes and types of the whole item.
      under: only what is below this path.

    Yields:
      (path below `under`, array).

    Raises:
      UserError: as `read_item`.
    """
    with _in_one_line(folder):
        _check_same(folder, like)
    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(like), strict=True)
    structure: Any = jax.tree.structure(like)
    as_numpy = structure.unflatten([ocp.RestoreArgs(restore_type=np.ndarray)] * len(leaves))
    checkpointer = ocp.PyTreeCheckpointer()
    for number, path in enumerate(paths):
        names = _names(path)
        if names[: len(under)] != under:
            continue
        others = [ocp.PLACEHOLDER] * len(leaves)
        others[number] = leaves[number]
        arguments = ocp.args.PyTreeRestore(structure.unflatten(others), restore_args=as_numpy)
        with _in_one_line(folder):
            array = jax.tree.leaves(checkpointer.restore(folder, args=arguments))[number]
        yield names[len(under) :], array


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr(path, simple=True, separator="/").split("/"))


@contextlib.contextmanager
def _in_one_line(folder: pathlib.Path) -> Iterator[None]:
    """Whatever Orbax raises becomes a `UserError`, with the cause chained to it.

    Orbax reports a failure at length, in its own log and from coroutines that it abandons.
    """
    orbax_log, hook = logging.getLogger("absl"), sys.unraisablehook
    level = orbax_log.level
    orbax_log.setLevel(logging.CRITICAL)
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a damaged file fails in as many ways as there are file formats
        sys.unraisablehook = lambda _: None
        cause: BaseException | None = error
        while cause is not None:  # the frames stay to be printed; what they hold goes
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__cause__ or cause.__context__
        gc.collect()  # its coroutines, while their complaints are still silenced
        text = str(error).strip()
        reason = re.split(r"[:.]?\s*(?:[\n(]|\. |$)", text)[0] or type(error).__name__
        unavailable = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        if _READ_ERROR in text or (isinstance(error, OSError) and error.errno == errno.EIO):
            raise UnreadableError(f"checkpoint {folder} can't be read: {reason}") from error
        if unavailable or not _DAMAGE.search(text):
            raise UserError(f"checkpoint {folder} can't be read: {reason}") from error
        raise DamagedError(
            f"checkpoint {folder} is damaged ({reason}); move {folder.parent} away to use the one "
            "before it"
        ) from error
    finally:
        orbax_log.setLevel(level)
        sys.unraisablehook = hook


def _check_same(folder: pathlib.Path, like: Any) -> None:
    """Compares shapes and types before reading: Orbax would convert types without a word."""
    described = ocp.StandardCheckpointer().metadata(folder).item_metadata
    if described is None:  # Orbax keeps the reason to itself
        (folder / "_METADATA").read_text()  # raises where the file itself can't be read
        raise ValueError("its list of arrays can't be decoded")
    saved = described.tree

    def describe(tree: Any) -> dict[str, str]:
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{leaf.shape}"
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }

    changed = differences(describe(saved), describe(like))
    if changed:
        listed = [f"{name} is {old}, not {new}" for name, (old, new) in changed.items()]
        more = f", and {len(listed) - 5} more" if len(listed) > 5 else ""
        raise UserError(f"checkpoint {folder} is of another model: {'; '.join(listed[:5])}{more}")
