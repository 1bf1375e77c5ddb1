"""`python forked.py SOCKET MODULE ...`: `python -m MODULE ...` without the seconds of its imports.

In place of a module, `-c TEXT`. The command runs in a process that tests/command_server.py forks:
with the folder, environment and files of this one, which passes signals on and ends as it does.
"""

import json
import os
import signal
import socket
import sys


def main(path: str, module: str, *arguments: str) -> None:
    request = {
        "module": module,
        "arguments": arguments,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
    }
    passed_on = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)  # until there is a process to have them
    server = socket.socket(socket.AF_UNIX)
    server.connect(path)
    socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
    server.shutdown(socket.SHUT_WR)
    answers = server.makefile()
    pid = int(answers.readline())
    for number in passed_on:
        signal.signal(number, lambda number, _: os.kill(pid, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
    code = int(answers.readline())
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main(*sys.argv[1:])
