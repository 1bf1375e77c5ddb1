"""Runs commands of the package, each in a process forked from one that has imported everything.

Importing TensorFlow, JAX and scikit-learn takes longer than most commands that tests run. Of JAX
nothing has started when it forks, so that a command still chooses its devices.
"""

import gc
import importlib
import json
import os
import runpy
import sys

COMMANDS = ("train", "probe", "quickstart", "convert", "data.__main__")


def serve() -> dict:
    """Answers each line of standard input with an exit code; returns in the forked processes."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    while line := requests.readline():
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            return request
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)
    os._exit(0)


def become(module: str, arguments: list[str], environment: dict[str, str], output: str) -> None:
    """Goes on as `python -m MODULE ARGUMENTS`, with its output in two files."""
    for stream, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(os.path.join(output, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    if hasattr(sys.modules[module], "__path__"):  # a package
        module += ".__main__"
    del sys.modules[module]  # it is run now, not imported
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # as `python -m` has it
    for command in COMMANDS:
        importlib.import_module(f"jepa_jax.{command}")
    gc.freeze()  # as in conftest.py
    gc.set_threshold(100_000, 20, 20)
    become(**serve())
