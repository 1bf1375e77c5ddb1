"""Checkpoints of a run: `workdir/checkpoints/<steps taken>`, written by Orbax.

A checkpoint has four items: `params`, `target_encoder` (the moving average, by itself, so that a
probe reads only those arrays), `optimizer_state`, and `config`, the resolved configuration. Orbax
writes in the background, and renames a checkpoint to its final name only when it is complete.

A checkpoint that `jepa_jax.convert` wrote has a fifth, `source`, which says where it came from. It
may lack `optimizer_state`, and hold but one encoder, as `target_encoder` or as `encoder`.
"""

import functools
import gc
import json
import logging
import pathlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jepa_jax.config import NETWORKS, Config, differences, from_mapping, to_dict
from jepa_jax.errors import UserError
from jepa_jax.objectives.objective import Objective
from jepa_jax.training.ema import get_target, replace_target
from jepa_jax.training.step import TrainState

log = logging.getLogger(__name__)

# A resumed run must agree on these with its checkpoint: another value would be another run.
_FIXED = ("seed", "batch_size", "data", "model", "predictor", "init", "masks", "objective")
# ... but for those, which change how it is computed and not what.
_FREE = ("model.remat", "model.scan_layers", "model.attention")


def make_manager(workdir: pathlib.Path, config: Config) -> ocp.CheckpointManager:
    """The manager of a run's checkpoints, with the run's rules of which to keep."""
    return ocp.CheckpointManager(
        workdir.absolute() / "checkpoints",
        options=ocp.CheckpointManagerOptions(
            max_to_keep=config.checkpoint.keep_last,
            keep_period=config.checkpoint.keep_every_steps or None,
            create=True,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        ),
    )


def save(manager: ocp.CheckpointManager, state: TrainState, config: Config) -> None:
    """Starts to save; `manager.wait_until_finished()` waits for the end of it.

    Raises:
      whatever went wrong with the save before, which ran in the background.
    """
    manager.save(
        int(state.step),
        args=ocp.args.Composite(
            **{name: ocp.args.StandardSave(tree) for name, tree in split(state).items()},
            config=ocp.args.JsonSave(to_dict(config)),
        ),
    )


def restore(folder: pathlib.Path, like: TrainState) -> TrainState:
    """Reads a whole training state.

    Args:
      folder: of one checkpoint.
      like: the state's shapes, with the shardings to restore to.

    Raises:
      UserError: the checkpoint is incomplete, damaged, or of another architecture.
    """
    parts = {name: read_item(folder / name, tree) for name, tree in split(like).items()}
    optimizer_state = replace_target(parts["optimizer_state"]["state"], parts["target_encoder"])
    return TrainState(parts["optimizer_state"]["step"], parts["params"], optimizer_state)


def restore_network(folder: pathlib.Path, network: str, objective: Objective) -> Any:
    """Reads the parameters of one encoder.

    Args:
      folder: of one checkpoint, from `find`.
      network: "target_encoder", the moving average, or "encoder", which the gradient trains.
      objective: of the checkpoint's configuration.

    Raises:
      UserError: the checkpoint does not hold that network, or is incomplete, damaged, or of another
        architecture.
    """
    choose_network(folder, network)
    like = jax.eval_shape(objective.init, jax.random.key(0))
    if (folder / network).is_dir():
        return read_item(folder / network, objective.target_of(like))
    return objective.target_of(read_item(folder / "params", like))


def choose_network(folder: pathlib.Path, asked: str | None) -> str:
    """The name of the encoder to use.

    Args:
      asked: "target_encoder", "encoder", or None: the target encoder, or else the only one that a
        converted checkpoint holds.

    Raises:
      UserError: the checkpoint does not hold what was asked for.
    """
    items = {"target_encoder": ("target_encoder",), "encoder": ("encoder", "params")}
    held = [name for name in NETWORKS if any((folder / item).is_dir() for item in items[name])]
    if not held:
        raise UserError(f"checkpoint {folder}: it holds no encoder; it may be damaged")
    if asked is None:
        if held[0] != NETWORKS[0]:
            log.info("checkpoint %s holds only the context encoder, which is used", folder)
        return held[0]
    if asked not in NETWORKS:
        raise UserError(f"--network {asked}: must be one of {', '.join(NETWORKS)}")
    if asked not in held:
        raise UserError(f"--network {asked}: checkpoint {folder} holds only the {held[0]}")
    return asked


def find(path: pathlib.Path) -> pathlib.Path:
    """The folder of one checkpoint.

    Args:
      path: that folder itself, or a run's workdir, whose newest is taken.

    Raises:
      UserError: there is none.
    """
    path = path.absolute()
    if any((path / item).is_dir() for item in ("target_encoder", "encoder", "params")):
        return path
    step = latest_step(path)
    if step is None:
        raise UserError(
            f"--checkpoint {path}: no checkpoint there; give a workdir of jepa_jax.train, one of "
            "its folders checkpoints/<step>, or what jepa_jax.convert wrote"
        )
    return path / "checkpoints" / str(step)


def latest_step(workdir: pathlib.Path) -> int | None:
    """Steps taken by the newest complete checkpoint, or None. Unfinished ones have other names."""
    folders = (workdir / "checkpoints").glob("[0-9]*")
    return max((int(p.name) for p in folders if p.name.isdigit() and p.is_dir()), default=None)


def read_config(folder: pathlib.Path) -> Config:
    """The configuration that a checkpoint was trained with.

    Raises:
      UserError: it can't be read.
    """
    path = folder / "config" / "metadata"
    try:
        saved = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"checkpoint {folder}: no configuration in {path}: {error}") from None
    return from_mapping(Config, saved)


def check_resumable(folder: pathlib.Path, config: Config) -> dict[str, tuple[Any, Any]]:
    """Refuses to go on from a checkpoint of another run.

    Returns:
      The differences that do not matter so much: dotted name -> (saved, now).

    Raises:
      UserError: a field that makes it another run has changed, or there is no optimizer state.
    """
    if not (folder / "optimizer_state").is_dir():
        raise UserError(
            f"checkpoint {folder} holds no optimizer state: its encoder can be used, but its "
            "training can't be continued; choose another --workdir"
        )
    changed = differences(to_dict(read_config(folder)), to_dict(config))
    for name, (saved, now) in changed.items():
        if name.startswith(_FIXED) and name not in _FREE:
            raise UserError(
                f"config.{name} = {now}: the run in {folder.parent.parent} has {saved}; set it "
                "back to resume that run, or choose another --workdir"
            )
    return changed


def split(state: TrainState) -> dict[str, Any]:
    """The state as the items of a checkpoint."""
    return {
        "params": state.params,
        "target_encoder": get_target(state.optimizer_state),
        "optimizer_state": {
            "step": state.step,
            "state": replace_target(state.optimizer_state, ()),
        },
    }


def read_item(folder: pathlib.Path, like: Any) -> Any:
    """One item of a checkpoint, with the shapes, types and shardings of `like`.

    Raises:
      UserError: it is incomplete, damaged, or of another architecture.
    """

    def read() -> Any:
        _check_same(folder, like)
        return ocp.StandardCheckpointer().restore(folder, like)

    return _in_one_line(folder, read)


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
      UserError: the item is incomplete, damaged, or of another architecture.
    """
    _in_one_line(folder, functools.partial(_check_same, folder, like))
    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(like), strict=True)
    structure = jax.tree.structure(like)
    as_numpy = structure.unflatten([ocp.RestoreArgs(restore_type=np.ndarray)] * len(leaves))

    checkpointer = ocp.PyTreeCheckpointer()

    def read(number: int) -> np.ndarray:
        others = [ocp.PLACEHOLDER] * len(leaves)
        others[number] = leaves[number]
        arguments = ocp.args.PyTreeRestore(structure.unflatten(others), restore_args=as_numpy)
        return jax.tree.leaves(checkpointer.restore(folder, args=arguments))[number]

    for number, path in enumerate(paths):
        names = tuple(jax.tree_util.keystr(path, simple=True, separator="/").split("/"))
        if names[: len(under)] == under:
            yield names[len(under) :], _in_one_line(folder, functools.partial(read, number))


def _in_one_line(folder: pathlib.Path, read: Callable[[], Any]) -> Any:
    """Calls `read`; whatever Orbax raises becomes a `UserError`.

    Orbax reports a failure at length, in its log and from its abandoned coroutines.
    """
    hook, sys.unraisablehook, reason = sys.unraisablehook, lambda _: None, None
    logging.disable(logging.CRITICAL)
    try:
        return read()
    except UserError:
        raise
    except Exception as error:  # a damaged file fails in as many ways as there are file formats
        reason = re.split(r"[:.]?\s*(?:[\n(]|\. |$)", str(error).strip())[0] or type(error).__name__
    finally:
        if reason:
            gc.collect()  # its coroutines, while what they say is still kept quiet
        logging.disable(logging.NOTSET)
        sys.unraisablehook = hook
    raise UserError(
        f"checkpoint {folder} can't be read ({reason}); remove {folder.parent} to use the one "
        "before it"
    )


def _check_same(folder: pathlib.Path, like: Any) -> None:
    """Compares shapes and types before reading: Orbax would convert types without a word."""
    saved = ocp.StandardCheckpointer().metadata(folder).item_metadata.tree

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
