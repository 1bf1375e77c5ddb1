"""Shared fixtures: a tiny configuration, and eight virtual devices."""

import os

# Before JAX starts. Multi-device tests use all eight; the others only the first.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the suite's time is compilation of steps that run only a few times.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import pathlib
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import pytest
from jax.sharding import AxisType
from jaxtyping import install_import_hook

REPOSITORY = pathlib.Path(__file__).parent.parent

# Shapes and types of annotated functions are checked at each call while the tests run.
install_import_hook("jepa_jax", "beartype.beartype")

from jepa_jax.command_line import load_config  # noqa: E402
from jepa_jax.config import Config, resolve  # noqa: E402
from jepa_jax.interop import converted  # noqa: E402
from jepa_jax.objectives.ijepa import make_objective  # noqa: E402


def load_config_file(name: str) -> ml_collections.ConfigDict:
    """`get_config()` of a file in configs/."""
    return ml_collections.ConfigDict(load_config(str(REPOSITORY / "configs" / f"{name}.py"), []))


def tiny_config() -> ml_collections.ConfigDict:
    """A run of seconds: two blocks of width 16 on the bundled images, 16 images a step."""
    config = load_config_file("fashion_mnist")
    config.epochs = 1
    config.batch_size = 16
    config.model.update({"patch_size": 7, "embed_dim": 16, "depth": 2, "num_heads": 2})
    config.predictor.update({"embed_dim": 8, "depth": 1, "num_heads": 2})
    config.masks.update({"context_tokens": 4, "num_targets": 2, "target_scale": (0.15, 0.3)})
    return config


def run_module(name: str, *arguments: str) -> subprocess.CompletedProcess:
    """`python -m jepa_jax.<name>` as a user runs it, in the repository, on one device."""
    return subprocess.run(
        [sys.executable, "-m", f"jepa_jax.{name}", *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def tiny() -> ml_collections.ConfigDict:
    return tiny_config()


class SmallCheckpoint(NamedTuple):
    """A checkpoint of the tiny configuration, with parameters that are easily told apart."""

    folder: pathlib.Path
    config: Config
    encoder: Any
    target_encoder: Any


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> SmallCheckpoint:
    """Written as converted ones are: no optimizer. The encoders differ, and no array is zero."""
    folder, config = tmp_path_factory.mktemp("small") / "checkpoint", resolve(tiny_config())
    params = jax.device_get(jax.jit(make_objective(config).init)(jax.random.key(0)))
    rng = np.random.default_rng(0)
    params, target = (
        jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), tree)
        for tree in (params, params["encoder"])
    )
    items = [("params", params), ("target_encoder", target)]
    converted.write(folder, items, config=config, source={})
    return SmallCheckpoint(folder, config, params["encoder"], target)


@pytest.fixture(scope="session")
def one_device() -> jax.sharding.Mesh:
    return jax.make_mesh(
        (1, 1, 1),
        ("data", "fsdp", "tensor"),
        axis_types=(AxisType.Auto,) * 3,
        devices=jax.devices()[:1],
    )
