"""Compiling before training starts, and keeping what was compiled."""

import logging
import os
import pathlib
import stat
import time
from collections.abc import Callable
from typing import Any

import jax

log = logging.getLogger(__name__)


def use_compilation_cache() -> pathlib.Path | None:
    """Turns on JAX's persistent cache in a folder that only this user can enter.

    Compiled programs are code that JAX runs without question, so they are never shared. A folder
    named in JAX_COMPILATION_CACHE_DIR is used as it is.

    Returns:
      The folder, or None where none can be made: everything is then compiled in each run.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
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


def compile_for_shapes(
    step: Callable[..., Any], state: Any, shapes: list[dict[str, jax.ShapeDtypeStruct]]
) -> list[Callable[..., Any]]:
    """Compiles a jitted step for each shape of batch, and logs how long each took.

    Args:
      state: the step's first argument, or its shapes.
      shapes: of its second argument.
    """
    compiled = []
    for batch in shapes:
        start = time.monotonic()
        compiled.append(step.lower(state, batch).compile())
        described = ", ".join(f"{name} {list(x.shape)}" for name, x in batch.items())
        log.info("compiled the step for %s in %.1f s", described, time.monotonic() - start)
    return compiled
