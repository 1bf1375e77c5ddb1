"""Checkpoints of a run: `workdir/checkpoints/<steps taken>`, written by Orbax.

A checkpoint's items are the fields of the state: `params`, `optimizer_state` (with the step) and
`objective_state`; an encoder that is part of the objective's state, as I-JEPA's `target_encoder`
is, is an item of its own, so that a probe reads only those arrays. `config` is the resolved
configuration and the number of the checkpoint's format; `data` says of how many examples, and of
which, the data set was (see `DataIdentity`). Orbax writes in the background, and renames
a checkpoint to its final name only when it is complete; then `manifest.json` is written, without
which it does not count (see `manifest`).

In format 1 the objective's state was the last part of the optimizer's chain.

A checkpoint that `jepa_jax.convert` wrote also has `source`, which says where it came from. It may
lack `optimizer_state`, and hold but one encoder, as `target_encoder` or as `encoder`.
"""

import asyncio
import json
import logging
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp

from jepa_jax.batch.spec import DataIdentity
from jepa_jax.config import Config, resolve, to_dict
from jepa_jax.config.formats import upgrade, with_format
from jepa_jax.errors import StoppedRunError, UserError
from jepa_jax.objectives.objective import Objective, at_path, replace_at_path
from jepa_jax.training.alarms import before_spikes
from jepa_jax.training.disk_errors import check_there
from jepa_jax.training.items import read_item
from jepa_jax.training.manifest import write_manifest
from jepa_jax.training.state import TrainState
from jepa_jax.training.steps import NEVER_SAVED, StepNames, set_aside, step_folders
from jepa_jax.training.steps import all_items as all_items  # part of this module's interface
from jepa_jax.training.steps import find as find  # part of this module's interface
from jepa_jax.training.steps import latest_step as latest_step
from jepa_jax.training.steps import network_items as network_items

log = logging.getLogger(__name__)

_SMALL = 2**20  # bytes of a replica's part


class _WithManifest(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """A checkpoint's folder on its way to its final name.

    Orbax finalizes it in its background thread, of process 0 alone, and only then deletes older
    checkpoints. What goes wrong there is raised by the manager's `wait_until_finished`.
    """

    async def finalize(self) -> None:
        await super().finalize()
        folder = pathlib.Path(self.get_final())
        if folder.parent.name == "checkpoints":  # else one of the items of a checkpoint
            await asyncio.to_thread(write_manifest, folder)
            (folder.parent.parent / NEVER_SAVED).unlink(missing_ok=True)


def _write_small_arrays_whole() -> None:
    """Orbax has each replica of an array write a part of it: for small ones that is a slow detour.

    Every slice is a program of its own to compile and run, while training stands still.
    """
    before = ocp.type_handlers.get_type_handler(jax.Array)
    handler = ocp.type_handlers.ArrayHandler(
        min_slice_bytes_for_replica_parallel=_SMALL,
        array_metadata_store=getattr(before, "_array_metadata_store", None),  # or it writes none
    )
    orbax_log = logging.getLogger("absl")
    level = orbax_log.level
    orbax_log.setLevel(logging.ERROR)  # it warns of the override
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
    orbax_log.setLevel(level)


class _Kept:
    """The run's rules of which checkpoints to keep, in the form that Orbax asks for them."""

    def __init__(self, config: Config, spikes: Sequence[int]):
        self._config = config.checkpoint
        self._spikes = spikes  # it grows while the run goes on

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self._config.keep_last :], *before_spikes(steps, self._spikes)}
        period = self._config.keep_every_steps
        return [step in kept or (period is not None and step % period == 0) for step in steps]


def make_manager(
    workdir: pathlib.Path,
    config: Config,
    *,
    newest: int | None = None,
    spikes: Sequence[int] = (),
) -> ocp.CheckpointManager:
    """The manager of a run's checkpoints, with the run's rules of which to keep.

    Args:
      spikes: steps with a loss spike; the last checkpoint before one is kept.
      newest: steps of the checkpoint that the run goes on from: whatever is newer is no part of
        the run; None: all are.
    """
    _write_small_arrays_whole()
    newer = [
        folder
        for folder in step_folders(workdir)
        if newest is not None and int(folder.name) > newest
    ]
    return ocp.CheckpointManager(
        workdir.absolute() / "checkpoints",
        options=ocp.CheckpointManagerOptions(
            preservation_policy=_Kept(config, spikes),
            create=True,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
            step_name_format=StepNames(hidden=newer),
            temporary_path_class=_WithManifest,
        ),
    )


def save(
    manager: ocp.CheckpointManager,
    state: TrainState,
    config: Config,
    objective: Objective,
    data: DataIdentity | None = None,
) -> None:
    """Starts to save, and logs how long it took; `manager.wait_until_finished()` waits for the end.

    Args:
      data: of what the state was trained on; None: not known.

    Raises:
      StoppedRunError: there is a newer checkpoint, which the run did not start from; or the folder
        is gone.
      whatever went wrong with the save before, which ran in the background.
    """
    items: dict[str, Any] = {
        name: ocp.args.StandardSave(tree) for name, tree in split(state, objective).items()
    }
    items["config"] = ocp.args.JsonSave(with_format(to_dict(config)))
    if data is not None:
        items["data"] = ocp.args.JsonSave(data._asdict())
    check_there(pathlib.Path(manager.directory).parent)
    step = int(state.step)
    if step == manager.latest_step():  # by the clock, and by a signal after the same step
        return
    folder = pathlib.Path(manager.directory) / str(step)
    if jax.process_index() == 0 and step not in manager.all_steps() and _exists(folder):
        log.warning("warning: %s is in the way, and is now %s", folder, set_aside(folder).name)
    start = time.monotonic()
    saved = manager.save(step, args=ocp.args.Composite(**items))  # waits for the one before, first
    stall = time.monotonic() - start
    if not saved:
        raise StoppedRunError(
            f"checkpoint {step} was not saved: {folder.parent} holds checkpoint "
            f"{manager.latest_step()}, which is no older; move it away, and run the same command "
            "again"
        )
    log.info("saving checkpoint %d: training stood still for %.1f s", step, stall)


def _exists(folder: pathlib.Path) -> bool:
    return folder.exists() or folder.is_symlink()


def split(state: TrainState, objective: Objective) -> dict[str, Any]:
    """The state as the items of a checkpoint."""
    items = {
        "params": state.params,
        "optimizer_state": {"step": state.step, "state": state.optimizer_state},
    }
    rest = state.objective_state
    for name, path in _own_items(objective).items():
        items[name] = at_path(state.objective_state, path)
        rest = replace_at_path(rest, path, ())
    return items | ({"objective_state": rest} if jax.tree.leaves(rest) else {})


def _own_items(objective: Objective) -> dict[str, tuple[str, ...]]:
    """Encoders that are items of their own: name -> path in the objective's state."""
    return {
        name: path[1:] for name, path in objective.encoders.items() if path[0] == "objective_state"
    }


def restore(folder: pathlib.Path, like: TrainState, objective: Objective) -> TrainState:
    """Reads a whole training state, of any format.

    Args:
      folder: of one checkpoint.
      like: the state's shapes, with the shardings to restore to.

    Raises:
      UserError: the checkpoint is incomplete, damaged, or of another architecture.
    """
    expected = expected_items(folder, like, objective)
    items = {name: read_item(folder / name, tree) for name, tree in expected.items()}
    if "objective_state" not in items and "objective_state" in split(like, objective):
        *chain, rest = items["optimizer_state"]["state"]
        items["optimizer_state"]["state"] = tuple(chain)
        items["objective_state"] = rest
    objective_state = items.get("objective_state", like.objective_state)
    for name, path in _own_items(objective).items():
        objective_state = replace_at_path(objective_state, path, items[name])
    optimizer = items["optimizer_state"]
    return TrainState(optimizer["step"], items["params"], optimizer["state"], objective_state)


def expected_items(folder: pathlib.Path, like: TrainState, objective: Objective) -> dict[str, Any]:
    """The items of a checkpoint as trees of shapes, in the format that it was written in."""
    expected = split(like, objective)
    if _read_json(folder).get("format", 1) == 1:
        rest = expected.pop("objective_state")
        optimizer = expected["optimizer_state"]
        expected["optimizer_state"] = optimizer | {"state": (*optimizer["state"], rest)}
    return expected


def restore_encoder(folder: pathlib.Path, name: str, objective: Objective) -> Any:
    """Reads the weights of one encoder, and no other arrays.

    Args:
      folder: of one checkpoint, from `find`.
      name: in `objective.encoders`.
      objective: of the checkpoint's configuration.

    Raises:
      UserError: the checkpoint does not hold that encoder, or is incomplete, damaged, or of another
        architecture.
    """
    choose_encoder(folder, name, objective)
    params = jax.eval_shape(objective.init, jax.random.key(0))
    path = objective.encoders[name]
    if (folder / name).is_dir():
        state = jax.eval_shape(objective.state(1.0).init, params)
        whole = {"params": params, "objective_state": state}
        return read_item(folder / name, at_path(whole, path))
    return read_item(folder / "params", params, under=path[1:])


def choose_encoder(folder: pathlib.Path, asked: str | None, objective: Objective) -> str:
    """The name of the encoder to use.

    Args:
      asked: in `objective.encoders`; or None: the first of them, or the only one that a
        converted checkpoint holds.

    Raises:
      UserError: the checkpoint does not hold what was asked for.
    """
    names = list(objective.encoders)
    if asked is not None and asked not in names:
        raise UserError(f"network {asked!r}: must be one of {', '.join(names)}")
    held = [
        name
        for name, path in objective.encoders.items()
        if (folder / name).is_dir() or (path[0] == "params" and (folder / "params").is_dir())
    ]
    if not held:
        raise UserError(f"checkpoint {folder}: it holds no encoder; it may be damaged")
    if asked is None:
        if held[0] != names[0]:
            log.info("checkpoint %s holds no %s; its %s is used", folder, names[0], held[0])
        return held[0]
    if asked not in held:
        raise UserError(f"network {asked!r}: checkpoint {folder} holds only the {held[0]}")
    return asked


def read_config(folder: pathlib.Path) -> Config:
    """The configuration that a checkpoint was trained with, whatever its format.

    It is checked as a user's is: a checkpoint may come from anywhere.

    Raises:
      UserError: it can't be read, or a field of it is out of range.
    """
    try:
        return resolve(upgrade(_read_json(folder)))
    except UserError as error:
        where = f"checkpoint {folder}"
        raise UserError(f"{error}" if where in str(error) else f"{where}: {error}") from error


def read_data(folder: pathlib.Path) -> DataIdentity | None:
    """What a checkpoint was trained on; None: it does not say, being converted or an older one.

    Raises:
      UserError: it can't be read.
    """
    if not (folder / "data").is_dir():
        return None
    saved = _read_json(folder, "data")
    try:
        return DataIdentity(int(saved["num_examples"]), str(saved["digest"]))
    except (KeyError, TypeError, ValueError) as error:
        where = folder / "data" / "metadata"
        raise UserError(f"checkpoint {folder}: no identity of its data in {where}") from error


def _read_json(folder: pathlib.Path, item: str = "config") -> dict[str, Any]:
    path = folder / item / "metadata"
    what = {"config": "configuration", "data": "identity of its data"}[item]
    try:
        saved = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"checkpoint {folder}: no {what} in {path}: {error}") from error
    if not isinstance(saved, dict):
        raise UserError(f"checkpoint {folder}: no {what} in {path}: it is no object")
    return saved
