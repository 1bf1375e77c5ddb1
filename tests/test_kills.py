"""SIGKILL at the worst moments of a run, in real processes: nothing is lost but steps since a save.

One run is killed again and again in one workdir. Its processes are forked from one that has
imported everything, in which JAX has not started, so that each costs its training alone.
"""

import json
import multiprocessing
import os
import re
import signal
import threading
from multiprocessing import forkserver
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from conftest import QUICK_COMPILER, REPOSITORY, stream_of, tiny_config

from jepa_jax.checkpoints import describe
from jepa_jax.config import resolve
from jepa_jax.data.sources import array_source
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training import checkpoint
from jepa_jax.training.loop import train
from jepa_jax.training.metrics import MetricsWriter
from jepa_jax.training.setup import set_up
from jepa_jax.training.steps import latest_step

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["test_kills"])  # found by PYTHONPATH alone, in Python 3.11
STEPS_PER_EPOCH, LAST_STEP, SAVE_EVERY = 10, 40, 3


def config_of_the_run(save_every=SAVE_EVERY):
    config = tiny_config()
    config.epochs = LAST_STEP // STEPS_PER_EPOCH
    config.objective.masks.update({"target_scale": (0.25, 0.25), "target_aspect_ratio": (1.0, 1.0)})
    config.logging.update(
        {"every_steps": 1, "diagnostics_every_steps": None, "knn_every_steps": None}
    )
    config.checkpoint.update({"every_steps": save_every, "keep_last": 2})
    return resolve(config)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def in_mid_training(moment):
    """Some time after the eighth step of this process."""
    write, calls = MetricsWriter.write, []

    def write_and_wait(self, step, values):
        write(self, step, values)
        calls.append(step)
        if len(calls) == 8:
            threading.Timer(moment, die).start()

    MetricsWriter.write = write_and_wait


def in_a_save(part):
    """In the second save of this process, once as many of its parts have been written."""
    finalize, save, calls, parts = checkpoint._WithManifest.finalize, checkpoint.save, [], []

    def count_saves(manager, *rest):
        manager.wait_until_finished()
        calls.append(1)
        save(manager, *rest)

    async def count_parts(self):
        if len(calls) == 2:
            parts.append(self)
            if len(parts) == part:
                die()
        await finalize(self)

    checkpoint.save, checkpoint._WithManifest.finalize = count_saves, count_parts


def once_save_has_returned(_):
    save, calls = checkpoint.save, []

    def save_and_die(*arguments):
        save(*arguments)
        calls.append(1)
        if len(calls) == 2:
            die()

    checkpoint.save = save_and_die


def before_the_manifest(_):
    write, calls = checkpoint.write_manifest, []

    def die_the_second_time(folder):
        calls.append(folder)
        if len(calls) == 2:
            die()
        write(folder)

    checkpoint.write_manifest = die_the_second_time


def in_a_deletion(files):
    """Once as many files of an old checkpoint are gone."""
    gone = []

    def dying(unlink):
        def wrapper(path, *, dir_fd=None):
            below = "" if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
            unlink(path, dir_fd=dir_fd)
            if re.search(r"/checkpoints/\d+(/|$)", os.path.join(below, os.fspath(path))):
                gone.append(path)
                if len(gone) == files:
                    die()

        return wrapper

    os.unlink, os.remove = dying(os.unlink), dying(os.remove)


CASES = [
    (1, in_mid_training, 0.013),
    (2, in_a_save, 1),
    (2, in_a_save, 4),
    (3, once_save_has_returned, None),
    (4, before_the_manifest, None),
    (5, in_a_deletion, 7),
]


def live(workdir, cache, arrange=None, argument=None, *, save_every=SAVE_EVERY):
    """Starts or resumes the run, in a process of its own, on one device."""
    os.environ["XLA_FLAGS"] = QUICK_COMPILER
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if arrange is not None:
        arrange(argument)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (165, 28, 28, 1), np.uint8)
    source = array_source(images, rng.integers(0, 10, 165), ("",) * 10, (28, 28))
    config = config_of_the_run(save_every)
    stream = stream_of(config, source)
    train(config, workdir, objective=make_objective(config), stream=stream)


def run(*arguments, **options):
    process = FORK.Process(target=live, args=arguments, kwargs=options)
    process.start()
    process.join(timeout=120)
    process.kill()
    return process.exitcode


def rows(workdir):
    parsed = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timed = ("images_per_second", "input_wait")
    return [{k: v for k, v in row.items() if k not in timed} for row in parsed]


class Left(NamedTuple):
    """What a kill left in the workdir."""

    case: int
    exit_code: int
    names: set[str]
    health: dict[str, str]  # of each checkpoint that is listed
    verified: dict[str, str]  # the same, with digests compared
    before: int  # the newest good one before
    newest: int
    reached: int  # the last row


def look(workdir, case, exit_code, before):
    listed: list[dict[str, Any]] = [
        {row["name"]: row["health"] for row in describe(workdir, digests=digests)}
        for digests in (False, True)
    ]
    names = {path.name for path in (workdir / "checkpoints").iterdir()}
    return Left(
        case, exit_code, names, *listed, before, latest_step(workdir), rows(workdir)[-1]["step"]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (REPOSITORY / "tests", REPOSITORY))))
        forkserver.ensure_running()
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def killed(folder):
    """What each kill left of `killed`; afterwards the run has come to its end."""
    left = []
    for case, arrange, argument in CASES:
        before = left[-1].newest if left else 0
        exit_code = run(folder / "killed", folder / "cache", arrange, argument)
        left.append(look(folder / "killed", case, exit_code, before))
    assert run(folder / "killed", folder / "cache") == 0
    return left


def of_case(killed, number):
    """Its kills; what holds after any kill is asserted here."""
    found = [left for left in killed if left.case == number]
    for left in found:
        assert left.exit_code == -signal.SIGKILL
        good = {name for name, health in left.health.items() if health == "good"}
        assert good == {name for name, health in left.verified.items() if health == "good"}
        assert str(left.newest) in good
        assert left.newest > left.before
        assert left.reached - left.newest <= 2 * SAVE_EVERY  # one, and what a save on its way takes
    return found


def test_case_01_killed_in_mid_training_the_newest_checkpoint_is_good(killed):
    assert of_case(killed, 1)


def test_case_02_killed_inside_a_save_the_one_before_is_used(killed):
    for left in of_case(killed, 2):
        unfinished = [name for name in left.names if "tmp" in name]
        assert [int(name.split(".")[0]) for name in unfinished] == [left.newest + SAVE_EVERY]
        assert {left.health[name] for name in unfinished} == {"unfinished"}


def test_case_03_killed_once_save_has_returned_only_what_is_complete_counts(killed):
    (left,) = of_case(killed, 3)
    assert left.newest in (left.reached, left.reached - SAVE_EVERY)


def test_case_04_a_checkpoint_without_manifest_counts_as_absent(killed, folder):
    (left,) = of_case(killed, 4)
    renamed = str(left.newest + SAVE_EVERY)
    assert left.health[renamed] == "incomplete"
    assert not (folder / "killed" / "checkpoints" / f"{renamed}.corrupt" / "manifest.json").exists()
    assert (folder / "killed" / "checkpoints" / f"{renamed}.corrupt").is_dir()


def test_case_05_a_half_deleted_checkpoint_is_not_good_and_later_deleted(killed, folder):
    at_the_end = {path.name for path in (folder / "killed" / "checkpoints").iterdir()}
    for left in of_case(killed, 5):
        half = [name for name, health in left.health.items() if health in ("damaged", "incomplete")]
        assert len(half) == 1
        assert int(half[0]) < left.newest
        assert half[0] not in at_the_end


def final_state(workdir):
    config = config_of_the_run()
    objective = make_objective(config)
    like = set_up(config, objective, steps_per_epoch=STEPS_PER_EPOCH).like
    assert latest_step(workdir) == LAST_STEP
    return jax.device_get(checkpoint.restore(checkpoint.find(workdir), like, objective))


def test_case_15_a_run_that_is_killed_many_times_ends_as_one_that_never_was(killed, folder):
    assert run(folder / "whole", folder / "cache", save_every=LAST_STEP) == 0
    whole, cut = (final_state(folder / name) for name in ("whole", "killed"))
    jax.tree.map(np.testing.assert_array_equal, whole, cut)
    assert rows(folder / "whole") == rows(folder / "killed")
    assert [row["step"] for row in rows(folder / "killed")] == list(range(1, LAST_STEP + 1))
