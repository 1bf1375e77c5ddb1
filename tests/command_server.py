"""Runs commands of the package, each in a process forked from one that has imported everything.

Importing TensorFlow, JAX and scikit-learn takes longer than most commands that tests run. Of JAX
nothing has started when it forks, so that a command still chooses its devices. See forked.py.
"""

import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys

COMMANDS = ("train", "probe", "quickstart", "convert", "extract", "data.__main__")


def serve(path: str) -> tuple[dict, list[int]]:
    """Answers each connection, until standard input ends; returns in the forked processes."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers below
    selector = selectors.DefaultSelector()
    for waiting in (listening, sys.stdin):
        selector.register(waiting, selectors.EVENT_READ)
    while True:
        if any(key.fileobj is sys.stdin for key, _ in selector.select()):
            os._exit(0)
        client, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            selector.close()
            return keep(client)
        client.close()


def keep(client: socket.socket) -> tuple[dict, list[int]]:
    """Forks the command, and tells the client its number and how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, files, _, _ = socket.recv_fds(client, 1 << 20, 3)
    while more := client.recv(1 << 20):
        message += more
    child = os.fork()
    if child == 0:
        client.close()
        return json.loads(message), files
    for file in files:
        os.close(file)
    client.sendall(f"{child}\n".encode())
    _, status = os.waitpid(child, 0)
    client.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def become(request: dict, files: list[int]) -> None:
    """Goes on as `python -m MODULE ARGUMENTS`, or as `python -c TEXT ARGUMENTS`."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path[0] = request["folder"]
    module = request["module"]
    sys.argv = [module, *request["arguments"]]
    if module == "-c":
        program, *sys.argv[1:] = request["arguments"]
        exec(program, {"__name__": "__main__"})
        return
    if hasattr(sys.modules.get(module), "__path__"):  # a package
        module += ".__main__"
    sys.modules.pop(module, None)  # it is run now, not imported
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # as `python -m` has it
    for command in COMMANDS:
        importlib.import_module(f"jepa_jax.{command}")
    gc.freeze()  # as in conftest.py
    gc.set_threshold(100_000, 20, 20)
    become(*serve(sys.argv[1]))
