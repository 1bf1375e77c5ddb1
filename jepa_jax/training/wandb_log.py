"""What a run logs, to Weights & Biases too: `logging.wandb` names the project."""

import logging
import os
import pathlib
import secrets
from collections.abc import Sequence
from typing import Any

from jepa_jax.config import Config, to_dict
from jepa_jax.errors import UserError

log = logging.getLogger(__name__)

ID_FILE = "wandb_id.txt"


def check_installed(project: str | None) -> None:
    """Raises UserError if there is a project, and the package `wandb` can't be imported."""
    if project is None:
        return
    try:
        # Not the bare module: a folder `wandb`, which offline runs leave, can be imported too.
        from wandb import init  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"config.logging.wandb = {project!r}: the package wandb can't be imported ({error}); "
            "pip install wandb, or set None"
        ) from error


class WandbLog:
    """One run in one project, which all starts of the run in a workdir add to.

    What goes wrong after the start is logged once, and nothing more is sent then.
    """

    def __init__(self, config: Config, workdir: pathlib.Path):
        """Raises UserError if wandb refuses the name of the project, or has no key."""
        import wandb

        self._run: Any = None
        begun = (workdir / ID_FILE).exists()
        try:
            self._run = wandb.init(
                project=config.logging.wandb,
                id=_run_id(workdir),
                resume="allow",
                allow_val_change=True,  # a resumed run may have another learning rate
                name=None if begun else workdir.absolute().name,  # the user may have changed it
                dir=str(workdir.absolute()),
                config=to_dict(config),
                settings=wandb.Settings(console="off"),  # the progress bar is no log
            )
            # Its own counter can't go back, as a resumed run does to the newest checkpoint.
            self._run.define_metric("*", step_metric="step")
        except wandb.errors.UsageError as error:
            raise UserError(f"config.logging.wandb = {config.logging.wandb!r}: {error}") from error
        except Exception as error:  # no network: the run is worth more than its log
            self._give_up(error)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Sends scalars after `step` steps."""
        self._log({"step": step, **values})

    def show(self, step: int, pictures: Sequence[pathlib.Path]) -> None:
        """Sends PNG files as they are now, each under its name."""
        if self._run is None:
            return
        try:
            import wandb

            images = {f"pictures/{path.stem}": wandb.Image(str(path)) for path in pictures}
        except Exception as error:
            self._give_up(error)
        else:
            self._log({"step": step, **images})

    def close(self, *, failed: bool) -> None:
        """Waits until all is sent."""
        if self._run is None:
            return
        try:
            self._run.finish(exit_code=int(failed))
        except Exception as error:
            self._give_up(error)

    def _log(self, row: dict[str, Any]) -> None:
        if self._run is None:
            return
        try:
            self._run.log(row)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        log.warning("Weights & Biases gets no more: %s: %s", type(error).__name__, error)


def _run_id(workdir: pathlib.Path) -> str:
    """The run's name for wandb: made by the first start, and read by the later ones."""
    path = workdir / ID_FILE
    if path.exists() and (known := path.read_text().strip()):
        return known
    new = secrets.token_hex(8)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(new + "\n")
    os.replace(temporary, path)
    return new
