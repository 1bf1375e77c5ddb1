"""Shared fixtures: a tiny configuration, and eight virtual devices."""

import os
import tempfile

# Before JAX starts. Multi-device tests use all eight; the others only the first.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the suite's time is compilation of steps that run only a few times.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# What one test compiled, the others read, in all of the suite's processes and their commands.
if "PYTEST_XDIST_WORKER" not in os.environ:  # those inherit it
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jepa_jax_tests_")  # 0700
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["TF_USE_LEGACY_KERAS"] = "1"  # importing Keras takes seconds, and nothing here uses it
os.environ |= {"TF_ENABLE_ONEDNN_OPTS": "0", "TF_CPP_MIN_LOG_LEVEL": "2"}  # as jepa_jax.data does

import functools
import gc
import logging
import pathlib
import shutil
import subprocess
import sys
from typing import Any, NamedTuple

import flax.linen  # noqa: F401
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax  # noqa: F401
import orbax.checkpoint  # noqa: F401
import pytest
import tensorflow as tf  # noqa: F401
from jax.sharding import AxisType
from jaxlib.version import __version__ as jaxlib_version
from jaxtyping import install_import_hook

# The older code generator, a third of the time, and each program in one piece, since the cores are
# taken; a compiler that does not know the flags dies of them.
QUICK_COMPILER = ""
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1" and jaxlib_version.startswith("0.10."):
    QUICK_COMPILER = " --xla_cpu_use_fusion_emitters=false"
    QUICK_COMPILER += " --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] += QUICK_COMPILER
jax.config.update("jax_numpy_rank_promotion", "raise")  # [N, D] + [D] must be written out

# A twentieth of the time: tracing makes many objects, and those of the libraries above stay.
gc.freeze()
gc.set_threshold(100_000, 20, 20)

REPOSITORY = pathlib.Path(__file__).parent.parent

# Shapes and types of annotated functions are checked at each call while the tests run. The large
# libraries are imported above, since Python does not look for their bytecode under the hook.
install_import_hook("jepa_jax", "beartype.beartype")

from jepa_jax.config import Config, resolve, to_dict  # noqa: E402
from jepa_jax.config.files import load_config  # noqa: E402
from jepa_jax.interop import converted  # noqa: E402
from jepa_jax.objectives.ema import EmaState  # noqa: E402
from jepa_jax.objectives.objective import Clock  # noqa: E402
from jepa_jax.objectives.registry import make_objective  # noqa: E402

# First, so that no worker begins one of them when the others have nothing left to do.
LONGEST = ("loop", "objectives", "processes", "kills", "alarms", "resume", "commands", "stalls")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    first = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(item.path.name, len(first)))  # stable


def pytest_sessionfinish(session: pytest.Session) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:  # the last one to end
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


def load_config_file(name: str) -> ml_collections.ConfigDict:
    """`get_config()` of a file in configs/, with the defaults of all other fields."""
    config = resolve(load_config(str(REPOSITORY / "configs" / f"{name}.py"), []))
    return ml_collections.ConfigDict(to_dict(config))


def tiny_config() -> ml_collections.ConfigDict:
    """A run of seconds: two blocks of width 16 on the bundled images, 16 images per step."""
    config = load_config_file("fashion_mnist")
    config.epochs = 1
    config.batch_size = 16
    config.model.update({"patch_size": 7, "embed_dim": 16, "depth": 2, "num_heads": 2})
    config.objective.predictor.update({"embed_dim": 8, "depth": 1, "num_heads": 2})
    config.objective.masks.update(
        {"context_tokens": 4, "num_targets": 2, "target_scale": (0.15, 0.3)}
    )
    return config


@functools.cache
def command_server() -> tuple[subprocess.Popen, str]:
    """The process, and where it listens. It ends with this process, whose pipe it reads."""
    address = f"{os.environ['JAX_COMPILATION_CACHE_DIR']}/commands-{os.getpid()}"
    server = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "tests" / "command_server.py"), address],
        cwd=REPOSITORY,
        env=os.environ | {"XLA_FLAGS": QUICK_COMPILER},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout.readline() == "ready\n"
    return server, address


def as_module() -> list[str]:
    """The start of a command line that does what `python -m` does, without seconds of imports."""
    return [sys.executable, "-I", "-S", str(REPOSITORY / "tests/forked.py"), command_server()[1]]


def run_module(name: str, *arguments: str) -> subprocess.CompletedProcess:
    """`python -m jepa_jax.<name>` as a user runs it, in the repository, on one device."""
    return subprocess.run(
        [*as_module(), f"jepa_jax.{name}", *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"XLA_FLAGS": QUICK_COMPILER},
        capture_output=True,
        text=True,
    )


def stream_of(config, source):
    """The batches that a run of this configuration trains on."""
    from jepa_jax.data.stream import make_stream  # TensorFlow: seconds, and not all tests need it

    return make_stream(
        make_objective(config).needs,
        config.data,
        source,
        seed=config.seed,
        batch_size=config.batch_size,
    )


def randomized(objective, seed=1):
    """Parameters of an objective, none of which is zero or one."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0.1, 0.4, x.shape), jnp.float32), shapes)


def ijepa_loss(objective):
    """I-JEPA's loss as a scalar function of (parameters, target encoder, batch, key)."""

    def loss(params, target, batch, key):
        state = EmaState(step=jnp.zeros([], jnp.int32), target=target)
        return objective.loss(params, state, batch, key, Clock(0, 100.0))[0]

    return loss


@pytest.fixture(autouse=True)
def log_as_it_was():
    """A command that ran in this process leaves its handler, with a stream that is closed later."""
    yield
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if type(handler) is logging.StreamHandler]:
        root.removeHandler(handler)
    logging.getLogger("jepa_jax").setLevel(logging.NOTSET)


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
    params = jax.device_get(make_objective(config).init(jax.random.key(0)))
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
