"""One run at a time in a workdir."""

import contextlib
import fcntl
import logging
import os
import pathlib
import socket
import tempfile
from collections.abc import Iterator

import jax

from jepa_jax.errors import UserError
from jepa_jax.training.processes import from_process_0

log = logging.getLogger(__name__)


@contextlib.contextmanager
def only_run_in(workdir: pathlib.Path) -> Iterator[None]:
    """Holds the workdir, which is made if need be; of several processes the first does, for all.

    The operating system gives the lock up when the process ends, however it ends: no crash leaves
    it behind.

    Raises:
      UserError: in every process: another run holds it, or nothing can be written there.
    """
    with contextlib.ExitStack() as held:
        refused = None
        if jax.process_index() == 0:
            try:
                held.enter_context(_locked(workdir))
            except UserError as error:
                refused = str(error)
        refused = from_process_0(refused)
        if refused is not None:
            raise UserError(refused)
        yield


@contextlib.contextmanager
def _locked(workdir: pathlib.Path) -> Iterator[None]:
    path, is_new = workdir / ".lock", not workdir.exists()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):  # a lock that was left behind opens anyway
            pass
        descriptor = _open_locked(path)
    except BlockingIOError:
        holder = path.read_text().strip() or "one that is just starting"
        raise UserError(
            f"--workdir {workdir}: another run writes there ({holder}); stop it, or choose another "
            "--workdir"
        ) from None
    except OSError as error:
        raise UserError(f"--workdir {workdir}: can't write there: {error.strerror}") from error
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        with contextlib.suppress(OSError):  # of a disk that fails, the first error is to be told
            path.unlink()
        os.close(descriptor)
        if is_new:  # of a run that was refused before it wrote anything, nothing stays
            with contextlib.suppress(OSError):
                workdir.rmdir()


def _open_locked(path: pathlib.Path) -> int:
    """Raises BlockingIOError where another process has locked the file."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before may have removed the file between our opening and locking it.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise
        except OSError as error:  # a file system without locks
            log.warning("%s can't be locked (%s): start no second run there", path, error.strerror)
            return descriptor
        os.close(descriptor)
