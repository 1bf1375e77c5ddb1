"""A run of several processes: joining them, and making sure that all run the same thing."""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import re
import socket
import sys
import threading
from typing import Any

import flax
import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

from jepa_jax.batch.spec import DataIdentity
from jepa_jax.config import Config, differences, to_dict
from jepa_jax.errors import UserError
from jepa_jax.training import peers
from jepa_jax.training.preemption import sigint_is_sigterm


def join(where: str) -> None:
    """Joins the other processes of the run; goes before any other use of JAX.

    Args:
      where: "auto" on a TPU pod, under Slurm or on Kubernetes, where JAX finds the others by
        itself; else "HOST:PORT,N,I": the address of process 0, the number of processes, and the
        number of this one.

    Raises:
      UserError: `where` is neither, or the others can't be found. If they have not come within
        JEPA_JAX_START_SECONDS (60), the process ends at once, with one line and the same exit code.
    """
    given: dict[str, Any] = {}
    if where != "auto":
        match = re.fullmatch(r"([^,\s]+:\d+),(\d+),(\d+)", where)
        if not match or int(match[3]) >= int(match[2]):
            raise UserError(
                f"--distributed {where}: must be auto, or HOST:PORT,N,I: the address of process 0, "
                "the number of processes, and the number of this one, from 0 on"
            )
        given = {
            "coordinator_address": match[1],
            "num_processes": int(match[2]),
            "process_id": int(match[3]),
        }
    limit = peers.seconds("JEPA_JAX_START_SECONDS", 60)  # for the last process to appear
    heartbeat = peers.seconds("JEPA_JAX_HEARTBEAT_SECONDS", 60)  # without one, one is lost
    if given:
        _check_address(where, given["coordinator_address"], mine=given["process_id"] == 0)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # for processes without GPU
    if re.match(r"localhost:|127\.", where):
        _stay_on_this_machine()
    failed: list[Exception] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(
                **given,
                initialization_timeout=10 * limit,
                heartbeat_timeout_seconds=heartbeat,
            )
        except Exception as error:
            failed.append(error)

    # In a thread of its own: JAX waits in C++, lets no signal through, and ends by aborting.
    joining = threading.Thread(target=initialize, daemon=True)
    joining.start()
    joining.join(limit)
    if joining.is_alive():
        told = f"--distributed {where}: waited {limit} seconds {_for_whom(given)}"
        print(f"error: {told}", file=sys.stderr, flush=True)
        os._exit(UserError.exit_code)  # an orderly end would wait for that thread
    if failed and isinstance(failed[0], ValueError | RuntimeError):
        reason = str(failed[0]).splitlines()[0]
        raise UserError(f"--distributed {where}: can't join the others: {reason}") from failed[0]
    if failed:
        raise failed[0]
    sigint_is_sigterm()
    peers.watch()


def _check_address(where: str, address: str, *, mine: bool) -> None:
    """Refuses a host that has no address; one that may have one later is left to JAX's waiting.

    Args:
      mine: this is process 0, and the port must be free: JAX 0.10 may crash where it is not.
    """
    host, port = address.rsplit(":", 1)
    try:
        socket.getaddrinfo(host.strip("[]"), port)
    except socket.gaierror as error:
        if error.errno != socket.EAI_AGAIN:
            raise UserError(f"--distributed {where}: host {host} has no address") from error
    if not mine or "JAX_COORDINATOR_BIND_ADDRESS" in os.environ:
        return
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        socket.create_server(("", int(port)), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise UserError(
            f"--distributed {where}: process 0 can't listen at port {port}: {reason}"
        ) from error


def _for_whom(given: dict[str, Any]) -> str:
    """What this process has been waiting for."""
    if not given:
        return "for the other processes; JEPA_JAX_START_SECONDS sets how long"
    address, number = given["coordinator_address"], given["num_processes"]
    if given["process_id"] == 0:
        return f"at {address} for all of {number} processes to come"
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=1).close()
    except OSError as error:
        return f"for process 0 at {address}, where nothing answers ({error.strerror or error})"
    return (
        f"at {address} for all of {number} processes to come; if they have, what listens there is "
        "not process 0"
    )


def _stay_on_this_machine() -> None:
    """Lets the processes meet at the loopback address, as the coordinator does.

    Gloo asks for the address of the machine's own name, which a container or a laptop may not know.
    JAX's option for another one is not public; without it, such a machine gets gloo's error.
    """
    with contextlib.suppress(ImportError, AttributeError):
        from jax._src.lib import _jax

        _jax.make_gloo_tcp_collectives = functools.partial(
            _jax.make_gloo_tcp_collectives, hostname="127.0.0.1"
        )


def check_agreement(config: Config) -> None:
    """Refuses to run unless all processes have the same configuration, code and libraries.

    Raises:
      UserError: in every process, with what differs.
    """
    if jax.process_count() == 1:
        return
    mine = {"config": to_dict(config), "code": _code_version()}
    theirs = from_process_0(mine)
    changed = differences(theirs, mine)
    same = gather(np.array([not changed]))
    if same.all():
        return
    me = jax.process_index()
    if same[me]:
        others = ", ".join(str(i) for i in np.flatnonzero(~same))
        raise UserError(f"--config: process {others} has other fields or other code than process 0")
    listed = "; ".join(f"{name} is {b} here and {a} there" for name, (a, b) in changed.items())
    raise UserError(f"process {me} must run what process 0 runs: {listed}")


def check_same_data(data: DataIdentity) -> None:
    """Refuses to run unless all processes see the same images.

    Raises:
      UserError: in every process, with those that see others than process 0.
    """
    if jax.process_count() == 1:
        return
    theirs = from_process_0(data._asdict())
    sees = gather(np.array([data.num_examples]))
    same = gather(np.array([data._asdict() == theirs]))
    if not same.all():
        others = "; ".join(f"process {i} has {sees[i]}" for i in np.flatnonzero(~same))
        raise UserError(
            f"config.data.path: must hold the same images for all processes; process 0 has "
            f"{sees[0]} training images; {others}, other ones"
        )


def check_shared(workdir: pathlib.Path) -> None:
    """Refuses a folder that is not one and the same for all processes.

    Raises:
      UserError: in every process, with those that do not see what process 0 writes.
    """
    if jax.process_count() == 1:
        return
    exists = next(folder for folder in (workdir, *workdir.absolute().parents) if folder.exists())
    name = from_process_0(f".jepa_jax-{os.getpid()}")
    if jax.process_index() == 0:
        with contextlib.suppress(OSError):
            (exists / name).touch()
    multihost_utils.sync_global_devices("written")
    seen = gather(np.array([(exists / name).exists()]))
    if jax.process_index() == 0:
        (exists / name).unlink(missing_ok=True)
    if not seen.all():
        others = ", ".join(str(i) for i in np.flatnonzero(~seen))
        raise UserError(
            f"--workdir {workdir}: process {others} does not see what process 0 writes there; must "
            "be a folder that all of them see and may write to"
        )


def gather(x: np.ndarray) -> np.ndarray:
    """An array of each process, one after another."""
    return np.asarray(multihost_utils.process_allgather(x)).reshape(-1, *x.shape[1:])


def from_process_0(value: Any) -> Any:
    """Process 0's value, in every process; anything that JSON can hold."""
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.zeros(size, np.uint8)
    padded[: min(size, len(text))] = text[:size]
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))))


def _code_version() -> dict[str, str]:
    """What must be the same besides the configuration: versions, and a digest of the package."""
    root, digest = pathlib.Path(__file__).parent.parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    versions = {module.__name__: module.__version__ for module in (jax, flax, optax)}
    return versions | {"jepa_jax": digest.hexdigest()[:12]}
