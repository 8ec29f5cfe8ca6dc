"""Accounts of the clients, in memory that all processes of a server share, so that a limit holds over all of them.

A client has one row of numbers, found by a digest of its name. A free row has only zeros, as a new client has.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import time
from array import array
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from types import TracebackType

# A client's row is in one group of rows, chosen by its digest.
NUM_GROUPS, GROUP_SIZE = 1024, 8


class _Number:
    """A number of an account, by its column."""

    def __init__(self, column: int) -> None:
        self._column = column

    def __get__(self, account: Account, owner: type[Account]) -> float:
        return account.row[self._column]

    def __set__(self, account: Account, value: float) -> None:
        account.row[self._column] = value


class Account:
    """One client's row.

    name: its digest, 0 in a free row. debt: multiply-adds to pay off, at time `refilled_s`. total, deep: sums of recent
    work, at time `seen_s`; see `client_limits`. Behind them each process has a count of requests and a count of
    connections, which only this process writes. The successor of a dead process clears them.
    """

    COLUMNS = 6

    name, debt, refilled_s, total, deep, seen_s = map(_Number, range(COLUMNS))

    def __init__(self, row: memoryview[float] | array[float], num_processes: int, own: int) -> None:
        self.row = row
        self._requests = self.COLUMNS + own
        self._connections = self._requests + num_processes
        self._split = self.COLUMNS + num_processes

    @property
    def requests(self) -> int:
        """Unanswered requests, in all processes."""
        return int(sum(self.row[self.COLUMNS : self._split]))

    @property
    def connections(self) -> int:
        """Open connections, in all processes."""
        return int(sum(self.row[self._split :]))

    def add_request(self, change: int) -> None:
        """Count requests of this process."""
        self.row[self._requests] += change

    def add_connection(self, change: int) -> None:
        """Count connections of this process. Never below 0: a connection may end that was never counted."""
        self.row[self._connections] = max(0.0, self.row[self._connections] + change)

    def clear_own_counts(self) -> None:
        """Forget the requests and connections of this process."""
        self.row[self._requests] = self.row[self._connections] = 0.0

    @property
    def idle(self) -> bool:
        """Whether the client has no request and no connection in any process."""
        return not self.requests and not self.connections

    def clear(self) -> None:
        """Free the row."""
        for column in range(len(self.row)):
            self.row[column] = 0.0


class Accounts:
    """The rows of all clients. Read and change them inside `with accounts.lock`.

    memory_fd: an anonymous file that the processes share. Default: memory of this process only. own: the number of this
    process, below `num_processes`.
    """

    def __init__(
        self, memory_fd: int | None = None, num_processes: int = 1, own: int = 0, num_groups: int = NUM_GROUPS
    ) -> None:
        self._num_processes, self._own, self._num_groups = num_processes, own, num_groups
        self._width = Account.COLUMNS + 2 * num_processes
        size_bytes = 8 * self._width * (num_groups * GROUP_SIZE + 1)
        self.lock: AbstractContextManager[object]
        if memory_fd is None:
            self.lock, memory = nullcontext(), mmap.mmap(-1, size_bytes)
        else:
            os.ftruncate(memory_fd, size_bytes)
            self.lock, memory = FileLock(memory_fd), mmap.mmap(memory_fd, size_bytes)
        self._numbers = memoryview(memory).cast("d")
        self.all_clients = self._row(num_groups * GROUP_SIZE)
        with self.lock:
            for number in range(num_groups * GROUP_SIZE if memory_fd is not None else 0):
                self._row(number).clear_own_counts()

    def find(self, client: str) -> Account | None:
        """The client's account; None if it has none."""
        digest = _digest(client)
        return next((account for account in self._group(digest) if account.name == digest), None)

    def open(self, client: str) -> Account:
        """The client's account, or a new one.

        In a full group, the new account replaces that of the idle client with the smallest debt. If none is idle, the
        new account is in no row, and is lost at the end of the request.
        """
        if (account := self.find(client)) is not None:
            return account
        digest = _digest(client)
        idle = [account for account in self._group(digest) if account.idle]
        if not idle:
            return Account(array("d", bytes(8 * self._width)), self._num_processes, self._own)
        account = min(idle, key=lambda account: (bool(account.name), account.debt))
        account.clear()
        account.name = digest
        return account

    def _group(self, digest: float) -> Iterator[Account]:
        first = int(digest) % self._num_groups * GROUP_SIZE
        return map(self._row, range(first, first + GROUP_SIZE))

    def _row(self, number: int) -> Account:
        start = number * self._width
        return Account(self._numbers[start : start + self._width], self._num_processes, self._own)


class FileLock:
    """A lock between processes, held for microseconds. The system releases it when its holder dies.

    The event loop must not wait for a holder that was stopped: after `timeout_s` it goes on without the lock, and does
    not wait again for `pause_s`. Then two processes may change an account at once, and one change is lost.
    """

    def __init__(self, fd: int, timeout_s: float = 0.02, pause_s: float = 1.0) -> None:
        self._fd, self._timeout_s, self._pause_s = fd, timeout_s, pause_s
        self._held = False
        self._wait_from_s = 0.0

    def __enter__(self) -> None:
        start_s = time.monotonic()
        while not self._take():
            if start_s < self._wait_from_s:
                return
            if time.monotonic() - start_s > self._timeout_s:
                self._wait_from_s = start_s + self._pause_s
                return
            time.sleep(0.0001)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._held:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)
            self._held = False

    def _take(self) -> bool:
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        self._held = True
        return True


@lru_cache(maxsize=4096)
def _digest(client: str) -> float:
    # 48 bits are exact in a double, and 1 more is never 0.
    return float(1 + int.from_bytes(hashlib.blake2b(client.encode(), digest_size=6).digest()))
