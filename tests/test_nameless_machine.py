"""Two processes on a machine whose own name has no address."""

import os
import socket
import subprocess
import sys

import pytest
from conftest import REPOSITORY

NAMELESS = ["unshare", "--user", "--map-root-user", "--uts", "sh", "-c"]
RENAME = "echo no-such-name.invalid > /proc/sys/kernel/hostname &&"
PROGRAM = """
import socket, sys
try:
    socket.getaddrinfo(socket.gethostname(), None)
    sys.exit("the name resolves")
except socket.gaierror:
    pass
from jepa_jax.training.processes import join
join(sys.argv[1])
import jax, numpy as np
from jax.experimental import multihost_utils
print(multihost_utils.process_allgather(np.array([jax.process_index()])).ravel().tolist())
"""


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_two_processes_meet_where_the_machines_name_does_not_resolve(host):
    try:
        subprocess.run([*NAMELESS, f"{RENAME} true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs Linux, and leave to make a namespace")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    python = [sys.executable, "-c", PROGRAM]
    processes = [
        subprocess.Popen(
            [*NAMELESS, f'{RENAME} exec "$@"', "sh", *python, f"{host}:{port},2,{number}"],
            cwd=REPOSITORY,
            env={**os.environ, "XLA_FLAGS": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert out.splitlines()[-1:] == ["[0, 1]"], err  # behind what gloo prints
