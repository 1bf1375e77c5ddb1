"""Seconds that a verified checkpoint costs: to save it, to write its manifest, to compare, to read.

    python -m benchmarks.verify_cost --config configs/in1k_vitb16_ep600.py --folder /tmp/verify_cost
    python -m benchmarks.verify_cost --config configs/in1k_vith14_ep300.py --folder DIR --made-up

The state of a recipe is saved as a run saves it: *stall* is how long `checkpoint.save` keeps the
loop, *whole save* until the manifest is there. With --made-up nothing is saved, for a state that
does not fit into memory: there are files of random bytes of the size of each item, so that only
what reads files is measured. *warm*: the files are in the system's page cache; *cold*: they were
dropped from it with posix_fadvise. The folder is deleted at the end. The last line is JSON.
"""

import argparse
import json
import math
import os
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import jax

from jepa_jax.config import resolve
from jepa_jax.config.files import load_config
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training import checkpoint
from jepa_jax.training.manifest import MANIFEST, find_fault, write_manifest
from jepa_jax.training.setup import Setup, set_up

LARGEST_FILE, CHUNK = 2**31, 2**26  # bytes


def timed(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def files_of(folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]


def drop_from_cache(folder: pathlib.Path) -> None:
    """So that the next read comes from the disk; only what has been written out can be dropped."""
    for path in files_of(folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def make_up(folder: pathlib.Path, items: dict[str, Any]) -> None:
    """Files of random bytes: as many of each item as its arrays have."""
    chunk = os.urandom(CHUNK)  # no digest and no disk here cares that it repeats
    for name, tree in items.items():
        left = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        (folder / name).mkdir(parents=True)
        for number in range(math.ceil(left / LARGEST_FILE)):
            size = min(left, LARGEST_FILE)
            with (folder / name / str(number)).open("wb") as file:
                for at in range(0, size, CHUNK):
                    file.write(chunk[: size - at])
            left -= size
    (folder / "config").mkdir()
    (folder / "config" / "metadata").write_text('{"format": 2}')


def random_numbers(x: jax.Array) -> jax.Array:
    if not jax.numpy.issubdtype(x.dtype, jax.numpy.floating):
        return x
    return jax.device_put(jax.random.normal(jax.random.key(x.size), x.shape, x.dtype), x.sharding)


def save_twice(
    workdir: pathlib.Path, config: Any, objective: Any, setup: Setup
) -> dict[str, float]:
    """The second save counts: the first also pays for what is only done once in a run."""
    # Moments that are zero, as at the start, would be compressed to nothing.
    state = jax.block_until_ready(jax.tree.map(random_numbers, setup.create()))
    manager = checkpoint.make_manager(workdir, config)
    for step in (1, 2):
        state = state._replace(step=state.step * 0 + step)
        start = time.perf_counter()
        stall = timed(lambda state=state: checkpoint.save(manager, state, config, objective))
        manager.wait_until_finished()
        whole = time.perf_counter() - start
    manager.close()
    return {"stall": stall, "whole save": whole}


def measure_restore(
    folder: pathlib.Path, objective: Any, setup: Setup, seconds: dict[str, float]
) -> None:
    def restore() -> None:
        jax.block_until_ready(checkpoint.restore(folder, setup.like, objective))

    def verify_and_restore() -> None:
        assert find_fault(folder) is None
        restore()

    restore()  # compiles nothing, but loads what Orbax needs
    seconds["restore, not verified, warm"] = timed(restore)
    seconds["verify and restore, warm"] = timed(verify_and_restore)
    drop_from_cache(folder)
    seconds["restore, not verified, cold"] = timed(restore)
    drop_from_cache(folder)
    seconds["verify and restore, cold"] = timed(verify_and_restore)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    config = resolve(load_config(arguments.config, ["--config.mesh.fsdp=1"]))
    objective = make_objective(config)
    setup = set_up(config, objective, steps_per_epoch=625)
    workdir = arguments.folder
    seconds: dict[str, float] = {}
    if arguments.made_up:
        folder = workdir / "checkpoints" / "1"
        make_up(folder, checkpoint.split(setup.like, objective))
    else:
        seconds |= save_twice(workdir, config, objective, setup)
        folder = checkpoint.find(workdir)
    seconds["write manifest, warm"] = timed(lambda: write_manifest(folder))
    seconds["names and sizes"] = timed(lambda: find_fault(folder, digests=False))
    seconds["compare digests, warm"] = timed(lambda: find_fault(folder))
    drop_from_cache(folder)
    seconds["compare digests, cold"] = timed(lambda: find_fault(folder))
    if not arguments.made_up:
        measure_restore(folder, objective, setup, seconds)
    sizes = sorted((path.stat().st_size for path in files_of(folder)), reverse=True)
    return {
        "config": arguments.config,
        "bytes": sum(sizes),
        "files": len(sizes),
        "largest_files": sizes[:4],
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/in1k_vitb16_ep600.py")
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="must not exist")
    parser.add_argument("--made-up", action="store_true")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    arguments.folder = arguments.folder.absolute()
    arguments.folder.mkdir(parents=True)
    try:
        result = measure(arguments)
    finally:
        shutil.rmtree(arguments.folder)
    for name, value in result["seconds"].items():
        print(f"{name:<30} {value:8.3f} s {result['bytes'] / value / 1e9:8.2f} GB/s")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
