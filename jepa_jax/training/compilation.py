"""Compiling ahead of the steps, and keeping what was compiled."""

import logging
import os
import pathlib
import stat
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

import jax

from jepa_jax.batch.spec import Shapes
from jepa_jax.training.stalls import COMPILER, Interrupted
from jepa_jax.training.state import TrainState
from jepa_jax.training.step import TrainStep

log = logging.getLogger(__name__)


def use_compilation_cache() -> pathlib.Path | None:
    """Turns on JAX's persistent cache in a folder that only this user can enter.

    Compiled programs are code that JAX runs without question, so they are never shared. A folder
    named in JAX_COMPILATION_CACHE_DIR is used as it is, with a warning if others may write there.

    Returns:
      The folder, or None where none can be made: everything is then compiled in each run.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        folder = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
        if folder.is_dir() and folder.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            log.warning(
                "JAX_COMPILATION_CACHE_DIR = %s: other users may write there, and what they write "
                "runs as your program; chmod 700 it, or unset the variable",
                folder,
            )
        return folder
    try:
        root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        folder = pathlib.Path(root) / "jepa_jax" / "xla"
        folder.mkdir(parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to another user")
        folder.chmod(stat.S_IRWXU)  # 0700
    except (OSError, RuntimeError) as error:
        log.warning("no compilation cache: %s", error)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def compile_ahead(
    step: Any, state: Any, shapes: list[dict[str, jax.ShapeDtypeStruct]]
) -> list[futures.Future]:
    """Starts to compile a jitted step for each shape of batch, in their order, in the background.

    Training can begin with the first. But on a GPU all are waited for, since its compiler tries
    variants out on the device, which must do nothing else then. On a TPU all are compiled at once:
    its compiler does half of its work in one thread, and the machine has dozens of cores.

    Args:
      state: the step's first argument, or its shapes.
      shapes: of its second argument.

    Returns:
      For each shape, the compiled step to be.
    """

    lowering = threading.Lock()  # Python's own work, which side by side would only be slower

    def compile_one(batch: dict[str, jax.ShapeDtypeStruct]) -> Callable[..., Any]:
        start = time.monotonic()
        with lowering:
            lowered = step.lower(state, batch)
        compiled = lowered.compile()
        described = ", ".join(f"{name} {list(x.shape)}" for name, x in batch.items())
        log.info("compiled the step for %s in %.1f s", described, time.monotonic() - start)
        return compiled

    backend = jax.default_backend()
    # The CPU's compiler uses all cores by itself.
    workers = max(len(shapes), 1) if backend == "tpu" else 1
    executor = futures.ThreadPoolExecutor(max_workers=workers, thread_name_prefix=COMPILER)
    compiled = [executor.submit(compile_one, batch) for batch in shapes]
    executor.shutdown(wait=backend == "gpu")
    return compiled


class CompiledSteps:
    """The step for each shape of batch, compiled in the background; or when it is first called."""

    def __init__(self, step: TrainStep, state: TrainState, shapes: list[Shapes], *, ahead: bool):
        self._step = step
        compiled = compile_ahead(step, state, shapes) if ahead else []
        self._compiled = dict(zip(map(_shape_key, shapes), compiled, strict=False))

    def __call__(self, batch: dict[str, jax.Array], interrupted: Callable[[], bool]) -> TrainStep:
        """Raises Interrupted while it is being compiled, which may take minutes."""
        waiting = self._compiled.get(_shape_key(batch))
        while waiting is not None and not futures.wait([waiting], timeout=0.5).done:
            if interrupted():
                raise Interrupted
        return self._step if waiting is None else waiting.result()

    def cancel(self) -> None:
        for waiting in self._compiled.values():
            waiting.cancel()


def _shape_key(batch: dict[str, Any]) -> tuple[tuple[int, ...], ...]:
    return tuple(batch[name].shape for name in sorted(batch))
