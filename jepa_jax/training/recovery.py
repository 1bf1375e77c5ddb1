"""Which checkpoint a run goes on from: the newest good one, and never from zero without a word.

Of several processes, process 0 looks at the files and renames, and all do what it found.
"""

import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jepa_jax.errors import DamagedError, UnreadableError, UserError
from jepa_jax.objectives.objective import Objective
from jepa_jax.training import checkpoint
from jepa_jax.training.manifest import find_fault
from jepa_jax.training.metrics import read_metrics
from jepa_jax.training.processes import from_process_0, gather
from jepa_jax.training.sharding import replicated
from jepa_jax.training.state import TrainState
from jepa_jax.training.steps import (
    NEVER_SAVED,
    set_aside,
    step_folders,
    tell_if_unverified,
    warn_of_strays,
)

log = logging.getLogger(__name__)


def resume(
    workdir: pathlib.Path,
    like: TrainState,
    objective: Objective,
    mesh: Mesh,
    *,
    check: Callable[[pathlib.Path], None],
    verify: bool = True,
) -> tuple[TrainState, int] | None:
    """The state of the newest good checkpoint, and its steps; None: the run has not begun.

    A checkpoint that is damaged or incomplete, holds another step than its name says, or a number
    that is not finite, is set aside as `<step>.corrupt`, and the one before it is tried. One that
    can't be read is passed over and left as it is.

    Args:
      like: the state's shapes, with the shardings to restore to.
      check: raises a `UserError` if a checkpoint is of another run.
      verify: compare SHA-256 with the manifest, not only names and sizes.

    Raises:
      UserError: the run has begun, and has no good checkpoint; or `check` refuses.
    """
    tried: list[str] = []  # in process 0
    passed: set[str] = set()
    if jax.process_index() == 0:
        warn_of_strays(workdir)
    while True:
        chosen = from_process_0(_choose(workdir, passed, tried, verify=verify))
        if chosen["error"] is not None:
            raise UserError(chosen["error"])
        if chosen["step"] is None:
            if jax.process_index() == 0:
                (workdir / NEVER_SAVED).touch()
            return None
        folder = workdir.absolute() / "checkpoints" / chosen["step"]
        check(folder)
        try:
            state, why = _restore(folder, like, objective, mesh)
        except UnreadableError as error:
            if jax.process_count() > 1:  # the others are reading it still: `leave` ends them
                raise
            _put_away(folder, str(error), passed, tried, rename=False)
            continue
        fine = gather(np.array([why is None]))
        if fine.all() and state is not None:
            if jax.process_index() == 0:
                tell_if_unverified(folder)
            return state, int(folder.name)
        del state
        if jax.process_index() == 0:
            _put_away(folder, why or "another process could not restore it", passed, tried)


def _choose(
    workdir: pathlib.Path, passed: set[str], tried: list[str], *, verify: bool
) -> dict[str, Any]:
    """In process 0, the newest step whose files are good, or an error; nothing in the others."""
    chosen: dict[str, Any] = {"step": None, "error": None}
    if jax.process_index() > 0:
        return chosen
    for folder in step_folders(workdir):
        if folder.name in passed:
            continue
        fault = find_fault(folder, digests=verify)
        if fault is None:
            return chosen | {"step": folder.name}
        _put_away(folder, str(fault), passed, tried, rename=fault.kind != "unreadable")
    rows = read_metrics(workdir / "metrics.jsonl")
    if (workdir / NEVER_SAVED).exists():
        if rows or tried:
            log.warning(
                "warning: the run in %s ended before its first checkpoint was complete, and starts "
                "anew",
                workdir,
            )
    elif tried:
        chosen["error"] = (
            f"--workdir {workdir}: no good checkpoint is left to go on from: {'; '.join(tried)}; "
            "choose another --workdir to start anew"
        )
    elif rows:
        chosen["error"] = (
            f"--workdir {workdir}: metrics.jsonl is of a run that has begun, and there is no "
            "checkpoint to go on from; put its checkpoints back, or move metrics.jsonl away or "
            "choose another --workdir to start anew"
        )
    return chosen


def _put_away(
    folder: pathlib.Path, why: str, passed: set[str], tried: list[str], *, rename: bool = True
) -> None:
    """Notes that a checkpoint is not used, tells so, and renames it if it is bad."""
    passed.add(folder.name)
    tried.append(f"{folder.name} is {why}")
    what = "it is left as it is"
    if rename:
        try:
            what = f"it is now {set_aside(folder).name}"
        except OSError as error:
            what = f"it could not be renamed ({error.strerror})"
    log.warning("warning: checkpoint %s is not used: %s; %s", folder, why, what)


def _restore(
    folder: pathlib.Path, like: TrainState, objective: Objective, mesh: Mesh
) -> tuple[TrainState | None, str | None]:
    """The state, or why it is not good."""
    try:
        state = checkpoint.restore(folder, like, objective)
    except DamagedError as error:
        return None, f"damaged: {error}"
    if int(state.step) != int(folder.name):
        return None, f"damaged: it holds step {int(state.step)}, not {folder.name}"
    name = find_not_finite(state, mesh)
    return (state, None) if name is None else (None, f"damaged: {name} is not finite")


def find_not_finite(tree: Any, mesh: Mesh) -> str | None:
    """The path of the first array that holds a NaN or an infinity; looked for on the devices."""
    floats = [
        (path, leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    if not floats:
        return None

    def are_finite(leaves: list[Any]) -> Any:
        return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])

    leaves = [leaf for _, leaf in floats]
    finite = np.asarray(jax.jit(are_finite, out_shardings=replicated(mesh))(leaves))
    if finite.all():
        return None
    return jax.tree_util.keystr(floats[int(finite.argmin())][0], simple=True, separator="/")
