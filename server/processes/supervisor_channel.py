"""What the supervisor and a process that it started send to each other.

They share a socket, which is the process's standard input. The supervisor writes an `Assignment`, pickled as
multiprocessing does it: both run the same program, and no other process writes there. After that the process writes
reports, one a line, and notices by the end of the stream when the supervisor is gone.
"""

from __future__ import annotations

import os
import pickle
import select
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from offramp.server.settings import Settings

# Time between two reports of a process that lives.
BEAT_S = 1.0

STDIN = 0


@dataclass(frozen=True)
class Assignment:
    """What a process has to do.

    name: in logs and in the file names of its counters. module: what it runs. number: of the frontend; 0 for the
    engine. folder: of this run of the server, for the counters of all processes and the engine's socket. address: URL
    of the server. File descriptors: listener: the listening socket, HTTP's for a frontend, the engine's own for the
    engine. segments: memory for pictures, by number of the frontend. connections: memory for the number of connections
    of each frontend. accounts: memory for the clients' accounts.
    """

    settings: Settings
    name: str
    module: str
    number: int
    folder: Path
    address: str
    listener: int
    segments: tuple[int, ...]
    connections: int
    accounts: int

    @property
    def engine_address(self) -> str:
        """Path of the engine's socket."""
        return str(self.folder / "engine")


class ProcessReport(msgspec.Struct, omit_defaults=True):
    """A sign of life. announcement: lines for the operator, once the process is ready. failure: why it has to end."""

    announcement: list[str] | None = None
    failure: str | None = None


class SupervisorChannel:
    """The process's side. assignment: what the supervisor has written."""

    def __init__(self) -> None:
        self.assignment: Assignment = pickle.load(sys.stdin.buffer)
        os.set_blocking(STDIN, False)

    @property
    def closed(self) -> bool:
        """Whether the supervisor is gone."""
        return bool(select.select([STDIN], [], [], 0)[0])

    def send(self, announcement: list[str] | None = None, failure: str | None = None) -> None:
        """Send a report."""
        # The supervisor is gone, or so late with reading that it misses nothing.
        with suppress(OSError):
            os.write(STDIN, msgspec.json.encode(ProcessReport(announcement, failure)) + b"\n")
