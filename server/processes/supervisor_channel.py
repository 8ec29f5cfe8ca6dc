"""What the supervisor and one process that it started say to each other.

The supervisor tells everything at once, as the process's standard input: an `Assignment`. It is pickled, as Python's
own multiprocessing does it: both ends are the same program, and nobody else can write there. After that they share a
socket on which the process tells, a JSON object a line, that it is ready, that it lives, or why it cannot start. Each
end notices by the end of file when the other is gone, however it went.
"""

from __future__ import annotations

import json
import pickle
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.server.settings import Settings

# How often a process says that it lives.
BEAT_S = 1.0


@dataclass(frozen=True)
class Assignment:
    """What a process needs to know to begin.

    name: of the process, in logs and in the files of its counters. number: of the frontend, 0 for the engine.
    folder: of this server's run; the counters of all processes lie there, and the engine's socket.
    lifeline, listener: file descriptors: the socket to the supervisor, and the listening socket: HTTP's for a
    frontend, the engine's own for the engine. segments: memory for pictures, by the number of the frontend. shares:
    memory in which the frontends tell each other how many connections they have. accounts: memory of the clients'
    accounts, which the frontends share.
    """

    settings: Settings
    name: str
    number: int
    folder: Path
    address: str
    lifeline: int
    listener: int
    segments: tuple[int, ...]
    shares: int
    accounts: int

    @property
    def engine_address(self) -> str:
        """Path of the engine's socket."""
        return str(self.folder / "engine")


def read_assignment() -> Assignment:
    """From standard input, in a process that the supervisor has started."""
    assignment = pickle.load(sys.stdin.buffer)
    assert isinstance(assignment, Assignment)
    return assignment


class Lifeline:
    """The process's end of the socket to the supervisor."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)

    @property
    def cut(self) -> bool:
        """Whether the supervisor is gone; it never says anything."""
        try:
            return not self._socket.recv(1)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def ready(self, announcement: list[str]) -> None:
        """The process does its work now. announcement: lines for whoever started the server."""
        self._say({"ready": announcement})

    def beat(self) -> None:
        """The process lives, and gets on with its work."""
        self._say({"beat": True})

    def failed(self, sentence: str) -> None:
        """The process cannot do its work, and ends."""
        self._say({"failed": sentence})

    def _say(self, message: dict[str, Any]) -> None:
        try:
            self._socket.send(json.dumps(message).encode() + b"\n")
        except OSError:
            # Gone, which `cut` tells; or so far behind with reading that one beat less makes no difference.
            return
