"""Decoding processes that are forked from one that has imported what they need: most of a start is imports.

For tests that decode and are not about the processes. `command` takes the place of `vidembed.video.pool.COMMAND`: it
starts a small process, which hands its standard input and output to a fork and lives as long as that.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys

# Without these imports that only the server and the tests need, the small process starts at once.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NoReturn


def command(address: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-S", __file__, address)


def server() -> Iterator[str]:
    """Yields the address of a server of forks, and ends it."""
    import subprocess
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        address = f"{folder}/socket"
        running = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "LD_BIND_NOW": "1"},
            start_new_session=True,  # Ctrl-C does not reach it
            text=True,
        )
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write(address + "\n")
        running.stdin.flush()
        assert running.stdout.readline() == "ready\n"
        yield address
        running.communicate(timeout=30)


def relay(address: str, arguments: str) -> None:
    """Hand standard input and output to a fork, and wait for its end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(address)
        socket.send_fds(connection, [json.dumps([json.loads(arguments), dict(os.environ)]).encode()], [0, 1])
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        connection.recv(1)


def serve() -> None:
    """Fork for each connection, until standard input ends."""
    import select

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(sys.stdin.readline().strip())
        listening.listen(64)
        os.write(1, b"ready\n")
        sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(__file__)), "src"))  # noqa: PTH118, PTH120
        from vidembed.video import load, worker  # noqa: F401 - loaded here, once

        while listening in select.select([listening, sys.stdin], [], [])[0]:
            connection = listening.accept()[0]
            if os.fork() == 0:
                listening.close()
                decode(connection)
            connection.close()


def decode(connection: socket.socket) -> NoReturn:
    """Work as a decoding process, on the standard input and output that come over a connection."""
    import threading

    from vidembed.video import load, worker

    message, (requests, answers), *_ = socket.recv_fds(connection, 2**20, 2)
    os.dup2(requests, 0)
    os.dup2(answers, 1)
    os.close(requests)
    os.close(answers)
    arguments, environment = json.loads(message)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def end_with_relay() -> None:
        connection.recv(1)
        os._exit(0)

    threading.Thread(target=end_with_relay, daemon=True).start()
    worker.main(load.read_windows, **{**arguments, "parent": os.getppid()})


if __name__ == "__main__":
    if len(sys.argv) > 1:
        relay(*sys.argv[1:])
    else:
        serve()
