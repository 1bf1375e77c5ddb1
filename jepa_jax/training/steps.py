"""The checkpoints of a workdir: which folders are steps, which of them are good, and setting aside.

A step's folder is called by the steps taken, as a plain number. A folder of any other name, and a
symbolic link, is never read as a step.
"""

import contextlib
import logging
import pathlib
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

import orbax.checkpoint as ocp

from jepa_jax.errors import UserError
from jepa_jax.training.manifest import Fault, find_fault, is_unverified

log = logging.getLogger(__name__)

SET_ASIDE = ".corrupt"
# In a workdir from the start of a new run until its first checkpoint is complete: such a run, if it
# is killed, may start anew, and no other.
NEVER_SAVED = ".never_saved"
_NUMBER = re.compile(r"0|[1-9][0-9]*")
_UNFINISHED = re.compile(r"[0-9]+\.orbax-checkpoint-tmp.*")


def step_folders(workdir: pathlib.Path) -> list[pathlib.Path]:
    """The folders that are called as a step is, the newest first, whatever they hold."""
    found = [path for path in _listed(workdir) if _is_step(path)]
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def strays(workdir: pathlib.Path) -> list[pathlib.Path]:
    """What else is there: other names, links, steps that were set aside; not unfinished saves."""
    return [
        path
        for path in _listed(workdir)
        if not _is_step(path) and not _UNFINISHED.fullmatch(path.name)
    ]


def unfinished(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Saves that are going on, or were cut: the next run removes those."""
    return [path for path in _listed(workdir) if _UNFINISHED.fullmatch(path.name)]


def latest_step(workdir: pathlib.Path) -> int | None:
    """Steps taken by the newest completely saved checkpoint, or None. No digest is compared."""
    for folder in step_folders(workdir):
        fault = find_fault(folder, (), digests=False)
        if fault is None or fault.kind == "unreadable":
            return int(folder.name)
    return None


def find(
    path: pathlib.Path,
    items: Callable[[pathlib.Path], Collection[str]] | None = None,
    *,
    digests: bool = True,
) -> pathlib.Path:
    """The folder of one checkpoint.

    Args:
      path: that folder itself, or a run's workdir, whose newest is taken; and if that is not good,
        with a warning the next older one.
      items: folder -> items that will be read, whose files are compared with the manifest, as is
        the configuration; None: nothing is compared.
      digests: compare SHA-256 too, not only names and sizes.

    Raises:
      UserError: there is none, or the one named is not good, or none of them.
    """
    path = path.absolute()
    named = path.parent.name == "checkpoints" and _is_step(path)
    if named or (path / "config" / "metadata").is_file():
        if items is not None:
            why = _unfit(path, items, digests)
            if why is not None:
                raise UserError(f"checkpoint {path} is not used: {why}")
            tell_if_unverified(path)
        return path
    tried = []
    for folder in step_folders(path):
        fault = find_fault(folder, (), digests=False)
        why = None if fault is None else str(fault)
        if why is None and items is not None:
            why = _unfit(folder, items, digests)
        if why is None:
            if items is not None:
                tell_if_unverified(folder)
            return folder
        tried.append(f"{folder.name} is {why}")
        log.warning("warning: checkpoint %s is not used: %s", folder, why)
    if tried:
        raise UserError(f"{path}: no good checkpoint there: {'; '.join(tried)}")
    raise UserError(
        f"{path}: no checkpoint there; give a workdir of jepa_jax.train, one of its folders "
        "checkpoints/<step>, or what jepa_jax.convert wrote"
    )


def all_items(folder: pathlib.Path) -> list[str]:
    """For `find`: everything will be read."""
    return [path.name for path in folder.iterdir() if path.is_dir()]


def network_items(folder: pathlib.Path) -> list[str]:
    """For `find`: all but the optimizer's moments, two thirds of the bytes."""
    return [name for name in all_items(folder) if name != "optimizer_state"]


def set_aside(folder: pathlib.Path) -> pathlib.Path:
    """Renames a bad checkpoint, so that it is no step any more; nothing is ever deleted.

    Returns:
      Its new name: `<step>.corrupt`, or with a number behind that if this exists.

    Raises:
      OSError: it can't be renamed.
    """
    target, number = folder.with_name(folder.name + SET_ASIDE), 1
    while target.exists() or target.is_symlink():
        number += 1
        target = folder.with_name(f"{folder.name}{SET_ASIDE}.{number}")
    return folder.rename(target)


def warn_of_strays(workdir: pathlib.Path) -> None:
    for path in strays(workdir):
        if path.is_symlink():
            what = "it is a symbolic link"
        elif SET_ASIDE in path.name:
            what = "it was set aside"
        else:
            what = "its name is not a plain number of steps"
        log.warning("warning: %s is ignored: %s", path, what)


def tell_if_unverified(folder: pathlib.Path) -> None:
    if is_unverified(folder):
        log.info("checkpoint %s is unverified: its format had no manifest", folder)


class StepNames(ocp.path.step.NameFormat[Any]):
    """What Orbax takes for a step: what `step_folders` does, but for some folders.

    So a link or a folder that could not be read neither counts among those kept, nor stops a save.
    """

    def __init__(self, hidden: Collection[pathlib.Path]):
        # By identity: a step of the same name that is saved later is no longer hidden.
        self._hidden = {_identity(folder) for folder in hidden}

    def build_name(self, step: int) -> str:
        return str(step)

    def find_all(self, base_path: Any) -> Iterator[Any]:
        for folder in step_folders(pathlib.Path(base_path).parent):
            with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                if _identity(folder) not in self._hidden:
                    path = ocp.path.step.epath.Path(folder)
                    yield ocp.path.step.Metadata(step=int(folder.name), path=path)

    def find_step(self, base_path: Any, step: int) -> Any:
        for found in self.find_all(base_path):
            if found.step == step:
                return found
        raise ValueError(f"{base_path}: no checkpoint {step}")


def _unfit(
    folder: pathlib.Path, items: Callable[[pathlib.Path], Collection[str]], digests: bool
) -> str | None:
    """Why a checkpoint can't be used for some of its items."""
    fault: Fault | None = find_fault(folder, ("config",), digests=digests)
    if fault is None:
        fault = find_fault(folder, items(folder), digests=digests)
    return None if fault is None else str(fault)


def _identity(folder: pathlib.Path) -> tuple[int, int]:
    stat = folder.stat()
    return stat.st_dev, stat.st_ino


def _listed(workdir: pathlib.Path) -> list[pathlib.Path]:
    folder = workdir / "checkpoints"
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _is_step(path: pathlib.Path) -> bool:
    return bool(_NUMBER.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()
