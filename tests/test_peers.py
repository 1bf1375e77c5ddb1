"""One process of two is killed, stalls, gets Ctrl-C or leaves: the other ends too, and says why.

The processes here join as `jepa_jax.train` does, and step together, without a model.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY
from two_processes import free_port

from jepa_jax.errors import PreemptedError, UserError
from jepa_jax.training import processes
from jepa_jax.training.processes import join

HEARTBEAT = 5
PROGRAM = """
import sys, time
from jepa_jax.command_line import make_parser, run_command, sigterm_is_preemption
sigterm_is_preemption()
import jax, numpy as np
from jepa_jax.errors import PreemptedError, UserError
from jepa_jax.training.peers import leave
from jepa_jax.training.preemption import notice_signals
from jepa_jax.training.processes import gather, join

def command(arguments, rest):
    join(sys.argv[1])
    print("joined", flush=True)
    try:
        with notice_signals() as interrupted:
            for step in range(1, 1000):
                gather(np.array([step]))
                print("step", step, flush=True)
                time.sleep(0.05)
                if interrupted(step):
                    raise PreemptedError(f"stopped after step {step}")
                if "leave" in sys.argv[2:] and step == 3 and jax.process_index() == 1:
                    raise UserError("checkpoint 5 can't be read")
    except PreemptedError:
        raise
    except Exception as error:
        leave(error)

run_command(command, make_parser("peers", ""), [])
"""


def start(where, *more, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, where, *more],
        cwd=REPOSITORY,
        env=os.environ
        | {"XLA_FLAGS": "", "JEPA_JAX_HEARTBEAT_SECONDS": str(HEARTBEAT)}
        | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(*more):
    port = free_port()
    return [start(f"127.0.0.1:{port},2,{number}", *more) for number in range(2)]


def reach(process, line):
    for said in process.stdout:
        if said.strip() == line:
            return
    raise AssertionError(process.communicate()[1])


def end(process):
    """The exit code, the error lines, the seconds that it took."""
    since = time.monotonic()
    err = process.communicate(timeout=120)[1]
    return process.returncode, err, time.monotonic() - since


def errors(err):
    return [line for line in err.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="module")
def pairs():
    """Started together, for the time that Python takes to import JAX."""
    started = {
        name: start_two(name) for name in ("kill 1", "kill 0", "stop 1", "interrupt", "leave")
    }
    yield started
    for process in [process for pair in started.values() for process in pair]:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("name", "number", "lost"),
    [
        pytest.param("kill 1", signal.SIGKILL, 1, id="case_09_sigkill_to_one_of_two"),
        pytest.param("kill 0", signal.SIGKILL, 0, id="case_10_sigkill_to_the_coordinator"),
        pytest.param("stop 1", signal.SIGSTOP, 1, id="case_11_one_of_two_stalls"),
    ],
)
def test_the_other_of_two_ends_within_the_heartbeat(pairs, name, number, lost):
    pair = pairs[name]
    reach(pair[0], "step 3")
    pair[lost].send_signal(number)
    code, err, took = end(pair[1 - lost])
    assert code in (PreemptedError.exit_code, -signal.SIGABRT), err  # launch/ runs both again
    assert took < HEARTBEAT + 5
    if name == "kill 1":
        assert code == PreemptedError.exit_code
        assert "error: process 0: ValueError: UNKNOWN: Gloo" in err
    if name == "stop 1":
        assert re.search(r"tasks are unhealthy \(stopped sending heartbeats\):\n1\n", err)


def test_case_07_sigint_to_two_processes_stops_both_after_the_same_step(pairs):
    pair = pairs["interrupt"]
    reach(pair[0], "step 3")
    for process in pair:  # as a terminal does
        process.send_signal(signal.SIGINT)
    ends = [end(process) for process in pair]
    assert [code for code, _, _ in ends] == [PreemptedError.exit_code] * 2, ends
    (first,), (second,) = (errors(err) for _, err, _ in ends)
    assert first == second
    assert re.fullmatch(r"error: stopped after step \d+", first)


def test_what_one_process_leaves_with_ends_the_others_at_once(pairs):
    ends = [end(process) for process in pairs["leave"]]
    for code, err, _ in ends:
        assert code == UserError.exit_code, err
        assert errors(err) == ["error: process 1: checkpoint 5 can't be read"]
        assert "Traceback" not in err


@pytest.fixture(scope="module")
def waiting():
    """Processes for which nobody comes: what each ended with."""
    stranger = socket.create_server(("127.0.0.1", 0))
    free, taken = free_port(), stranger.getsockname()[1]
    wheres = {
        "nothing listens": f"127.0.0.1:{free},2,1",
        "a stranger listens": f"127.0.0.1:{taken},2,1",
        "the port is in use": f"127.0.0.1:{taken},2,0",
        "the second is missing": f"127.0.0.1:{free_port()},2,0",
    }
    limit = {"JEPA_JAX_START_SECONDS": "3"}
    started = {name: start(where, **limit) for name, where in wheres.items()}
    yield {name: (wheres[name], *end(process)) for name, process in started.items()}
    stranger.close()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing listens", r"waited 3 seconds for process 0 at .*, where nothing answers"),
        ("a stranger listens", r"waited 3 seconds at .*what listens there is not process 0"),
        ("the port is in use", r"process 0 can't listen at port \d+: Address already in use"),
        ("the second is missing", r"waited 3 seconds at .* for all of 2 processes to come$"),
    ],
)
def test_case_59_whoever_nobody_comes_for_ends_with_the_address(waiting, name, said):
    where, code, err, _ = waiting[name]
    assert code == UserError.exit_code, err
    (line,) = errors(err)
    assert re.match(rf"error: --distributed {where}: {said}", line)
    assert "Traceback" not in err


def test_case_59_a_host_without_address_is_told_at_once(monkeypatch):
    def unknown(*_):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(processes.socket, "getaddrinfo", unknown)
    with pytest.raises(UserError, match=r"--distributed nohost:1,2,1: host nohost has no address"):
        join("nohost:1,2,1")


def test_a_time_that_is_no_number_is_told(monkeypatch):
    monkeypatch.setenv("JEPA_JAX_START_SECONDS", "1m")
    with pytest.raises(UserError, match=r"JEPA_JAX_START_SECONDS=1m: must be a number of seconds"):
        join("localhost:1,2,1")
