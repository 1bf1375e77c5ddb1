"""Input and steps that hang are told of and ended; case 12 of the list of faults."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import Future, wait

import pytest
from conftest import REPOSITORY, as_module, stream_of

from jepa_jax.config import resolve
from jepa_jax.data.sources import open_source
from jepa_jax.errors import PreemptedError, StalledInputError
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training import checkpoint, compilation, stalls
from jepa_jax.training.loop import train
from jepa_jax.training.stalls import Interrupted, in_time, threads_at_work

SECOND = 1 / 60  # in minutes
HANGS_AT = 5


def never() -> bool:
    return False


def hanging(batches, at, until, then=lambda: None):
    """The same batches, of which one comes only after an event."""
    for number, batch in enumerate(batches):
        if number == at:
            then()
            until.wait(60)
        yield batch


@pytest.fixture
def hours_pass(monkeypatch):
    """For what waits, from its call on; no limit is reached before, on however slow a machine."""
    hours = itertools.repeat(0.0)
    clock = types.SimpleNamespace(monotonic=lambda: time.monotonic() + next(hours))
    monkeypatch.setattr(stalls, "time", clock)
    monkeypatch.setattr(stalls, "_LONGEST_TICK", 1e9)

    def begin():
        nonlocal hours
        hours = itertools.count(3600.0, 3600.0)

    return begin


@pytest.fixture
def released():
    event = threading.Event()
    yield event
    event.set()


def test_batches_come_in_order_and_their_generator_is_closed():
    closed = []

    def numbers():
        try:
            yield from range(1000)
        finally:
            closed.append(threading.current_thread().name)

    taken = in_time(numbers(), SECOND, never)
    assert [next(taken) for _ in range(5)] == list(range(5))
    taken.close()
    assert closed == ["jepa_jax input"]
    assert list(in_time(iter(range(1000)), None, never)) == list(range(1000))
    assert not threads_at_work()


def test_an_error_of_the_input_is_raised_where_the_batch_is_asked_for():
    def bad():
        yield 1
        raise ZeroDivisionError("in the input")

    taken = in_time(bad(), SECOND, never)
    assert next(taken) == 1
    with pytest.raises(ZeroDivisionError, match="in the input"):
        next(taken)


def test_waiting_ends_at_the_limit_or_when_the_run_is_to_stop(released, monkeypatch, capfd):
    monkeypatch.setattr(stalls, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(stalls, "_END_SECONDS", 0.1)
    taken = in_time(hanging(iter(range(9)), 1, released), 0.3 * SECOND, never)
    assert next(taken) == 0
    with pytest.raises(StalledInputError, match=r"no batch came for .*config.stall_minutes = 0.00"):
        next(taken)
    assert "hanging" in capfd.readouterr().err  # where it hangs
    assert threads_at_work()
    taken = in_time(hanging(iter(range(9)), 0, released), None, lambda: True)
    with pytest.raises(Interrupted):
        next(taken)


@pytest.mark.parametrize("stopped", [False, True])
def test_case_12_input_that_hangs_ends_a_run_that_is_saved(
    tiny, tmp_path, released, hours_pass, monkeypatch, stopped
):
    monkeypatch.setattr(stalls, "_END_SECONDS", 0.1)
    one_size = {"target_scale": (0.25, 0.25), "target_aspect_ratio": (1.0, 1.0)}
    tiny.objective.masks.update(one_size)  # one step to compile
    config = resolve(tiny)
    stream = stream_of(config, open_source(config.data, "train"))

    def then():
        if stopped:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            hours_pass()

    def batches(*which):
        yield from hanging(stream.batches(*which), HANGS_AT, released, then)

    with pytest.raises(PreemptedError if stopped else StalledInputError) as ended:
        train(
            config,
            tmp_path,
            objective=make_objective(config),
            stream=stream._replace(batches=batches),
        )
    assert ended.value.exit_code == (75 if stopped else 3)
    assert checkpoint.latest_step(tmp_path) == HANGS_AT


def test_case_06_sigterm_while_a_step_is_compiled_ends_the_run_at_once(tiny, tmp_path, monkeypatch):
    """The first shape is there, and the second one takes for ever."""
    config = resolve(tiny)
    stream = stream_of(config, open_source(config.data, "train"))
    real, endless = compilation.compile_ahead, []

    def compile_the_first(step, state, shapes):
        endless.extend(Future() for _ in shapes[1:])
        return [*real(step, state, shapes[:1]), *endless]

    def wait_and_stop(waiting, timeout):
        if waiting[0] in endless:
            os.kill(os.getpid(), signal.SIGTERM)
        return wait(waiting, 0.1)

    monkeypatch.setattr(compilation, "compile_ahead", compile_the_first)
    monkeypatch.setattr(compilation.futures, "wait", wait_and_stop)
    with pytest.raises(PreemptedError) as ended:
        train(config, tmp_path, objective=make_objective(config), stream=stream)
    assert endless
    taken = checkpoint.latest_step(tmp_path)
    told = "before the first step" if taken is None else f"after step {taken}, which is saved"
    assert f"stopped {told}" in str(ended.value)


HUNG_PROCESS = """
import itertools, sys, time, types
import jepa_jax.train as command
from jepa_jax.data import stream
from jepa_jax.training import stalls
class Hangs(stream._Batches):
    def batches(self, *which):
        for number, batch in enumerate(super().batches(*which)):
            if number == 2:
                hours = itertools.count(0, 3600)  # pass by between two looks at the clock
                stalls.time = types.SimpleNamespace(monotonic=lambda: next(hours))
            while number == 2:
                time.sleep(1)
            yield batch
stream._Batches = Hangs
stalls._END_SECONDS, stalls._LONGEST_TICK = 0.1, 1e9
command.main()
"""


def test_case_12_the_process_ends_although_a_thread_hangs(tmp_path):
    """In the middle of an epoch, with TensorFlow's threads at work."""
    fields = {
        "epochs": 1,
        "batch_size": 2000,
        "model.patch_size": 7,
        "model.depth": 1,
        "model.embed_dim": 16,
        "model.num_heads": 2,
        "objective.predictor.depth": 1,
        "objective.masks.context_tokens": 4,
    }
    ended = subprocess.run(
        [*as_module(), "-c", HUNG_PROCESS, "--config", "configs/fashion_mnist.py"]
        + ["--workdir", str(tmp_path)]
        + [f"--config.{name}={value}" for name, value in fields.items()],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 3, ended.stderr
    assert "\nerror: no batch came for" in ended.stderr
    assert checkpoint.latest_step(tmp_path) == 2


def test_case_12_a_step_that_hangs_ends_the_process():
    program = (
        "import time; from jepa_jax.training.stalls import Watchdog; dog = Watchdog(0.005)\n"
        "with dog.waiting('step 1'): time.sleep(0.01)\n"
        "time.sleep(0.7)\n"  # waits for nothing
        "with dog.waiting('step 2'): time.sleep(60)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=50
    )
    assert ended.returncode == 3
    assert "error: step 2 has taken longer than config.stall_minutes = 0.005" in ended.stderr
    assert "Thread 0x" in ended.stderr


def test_the_time_that_a_process_is_stopped_does_not_count():
    """By SIGSTOP, or by the lid of a laptop."""
    program = (
        "import time; from jepa_jax.training import stalls; stalls._LONGEST_TICK = 0.3\n"
        "with stalls.Watchdog(0.025).waiting('step 1'):\n"
        "    print('waits', flush=True); [time.sleep(0.05) for _ in range(10)]"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "waits\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(2.0)
        process.send_signal(signal.SIGCONT)
        assert process.wait(timeout=60) == 0
