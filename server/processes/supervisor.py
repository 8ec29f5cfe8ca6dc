"""The supervisor: starts the engine process and the frontends, starts again who dies, and ends all in good order.

It serves nothing and loads nothing heavy, so that there is little in it that could fail.

    supervisor ─┬─ engine        owns the device; frontends connect to its Unix socket
                ├─ frontend-0    all frontends accept from one listening socket, which the supervisor keeps open:
                └─ frontend-1    a connection that waits when one of them dies is taken by another
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from offramp.server.processes.stand_in import StandIn
from offramp.server.processes.supervisor_channel import BEAT_S, Assignment
from offramp.server.serve import configure_logging, listen, log_config, log_draining, log_keys, url
from offramp.server.settings import Settings

logger = logging.getLogger(__name__)

ENGINE = "engine"

# A process that was ready and has been silent for so long is killed. Its event loop gives the sign of life, which no
# step and no decoding delays.
HUNG_AFTER_S = 10.0

# Waits before a new start of a process that died before it was ready: none at first, longer each time. A process that
# had become ready is started again at once, since its start takes seconds already.
RESTART_DELAYS_S = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)

# Beyond what the settings give it for draining, how long a process may take to end.
END_S = 10.0


@dataclass(frozen=True)
class Role:
    """What a process is for. module: what it runs. listener: what it accepts connections from."""

    name: str
    number: int
    module: str
    listener: socket.socket


class Child:
    """A running process, and what it has told."""

    def __init__(
        self, process: subprocess.Popen[bytes], messages: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.process = process
        self.announcement: list[str] | None = None
        self.failure: str | None = None
        self.silent_s = 0.0
        self._messages = messages
        # Nothing is ever written, but the socket is closed when its writer is.
        self._writer = writer

    @property
    def ready(self) -> bool:
        """Whether it has begun its work."""
        return self.announcement is not None

    async def live(self, on_ready: Callable[[], None]) -> None:
        """Listen to it until it has ended."""
        while line := await self._messages.readline():
            message = json.loads(line)
            self.silent_s = 0.0
            self.failure = message.get("failed", self.failure)
            if "ready" in message:
                self.announcement = message["ready"]
                on_ready()
        self._writer.close()
        await asyncio.to_thread(self.process.wait)

    def describe_end(self) -> str:
        """How it ended, for the log and for whoever started the server."""
        status = self.process.returncode
        if self.failure is not None:
            return self.failure
        return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


class RestartDelays:
    """How long to wait before a process that has died is started again; one for each process.

    delays_s: after the first death in a row before it was ready, the second and so on; the last for all others.
    """

    def __init__(self, delays_s: Sequence[float] = RESTART_DELAYS_S) -> None:
        self._delays_s = delays_s
        self._deaths = 0

    def after(self, ready: bool) -> float:
        """Seconds to wait after a death. ready: whether the process had become ready."""
        self._deaths = 0 if ready else self._deaths + 1
        return self._delays_s[min(max(self._deaths, 1), len(self._delays_s)) - 1]


class Supervisor:
    """Keeps one engine process and `settings.frontends` frontends running, until a signal or a failure at the start.

    listener: the HTTP socket. folder: empty, for this run alone. say: told the announcement, line by line.
    """

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        folder: Path,
        say: Callable[[str], None],
        hung_after_s: float = HUNG_AFTER_S,
        restart_delays_s: Sequence[float] = RESTART_DELAYS_S,
    ) -> None:
        self._failure: str | None = None
        self._settings = settings
        self._address = url(listener)
        self._listener = listener
        self._folder = folder
        self._say = say
        self._hung_after_s = hung_after_s
        self._restart_delays_s = restart_delays_s
        self._engine_listener = socket.socket(socket.AF_UNIX)
        self._engine_listener.bind(str(folder / ENGINE))
        self._engine_listener.listen()
        self._segments = tuple(os.memfd_create(f"offramp-frontend-{n}") for n in range(settings.frontends))
        self._shares = os.memfd_create("offramp-connections")
        self._accounts = os.memfd_create("offramp-accounts")
        self._children: dict[str, Child] = {}
        self._stand_in = StandIn(listener)
        self._announced = False
        self._ending = asyncio.Event()
        self._end_signal = signal.SIGINT

    async def run(self) -> str | None:
        """Start everything, keep it running, and end it; why it came to nothing, None after an orderly end."""
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, self._on_signal, sig)
        engine = Role(ENGINE, 0, "offramp.server.processes.engine_process", self._engine_listener)
        frontends = [
            Role(f"frontend-{number}", number, "offramp.server.processes.frontend_process", self._listener)
            for number in range(self._settings.frontends)
        ]
        keepers = {role.name: asyncio.create_task(self._keep(role)) for role in (engine, *frontends)}
        for keeper in keepers.values():
            # They return where the server ends; one that fails is our bug, and must not leave half a server behind.
            keeper.add_done_callback(lambda _: self._ending.set())
        watch = asyncio.create_task(self._watch())
        await self._ending.wait()
        watch.cancel()
        self._stand_in.set_active(False)
        self._listener.close()
        # The engine last: it has the answers that the frontends wait for.
        drain_s = self._settings.drain_delay_s + self._settings.drain_timeout_s
        engine_keeper = keepers.pop(ENGINE)
        await self._end(keepers.values(), [role.name for role in frontends], self._end_signal, drain_s + END_S)
        await self._end([engine_keeper], [ENGINE], signal.SIGTERM, END_S)
        self._engine_listener.close()
        for memory in (*self._segments, self._shares, self._accounts):
            os.close(memory)
        return self._failure

    async def _keep(self, role: Role) -> None:
        """Run one process, and a new one whenever it has died."""
        delays, was_ready = RestartDelays(self._restart_delays_s), False
        while (child := await self._start(role)) is not None:
            await child.live(partial(self._on_ready, role.name, was_ready))
            if self._ending.is_set():
                return
            del self._children[role.name]
            self._stand_in.set_active(self._announced and not self._any_frontend_ready)
            was_ready = was_ready or child.ready
            if not was_ready:
                self._give_up(child.failure or f"{role.name} has ended before it was ready: {child.describe_end()}")
                return
            delay_s = delays.after(child.ready)
            when = f"in {delay_s:g} s" if delay_s else "at once"
            logger.error("%s has died: %s; the next starts %s", role.name, child.describe_end(), when)
            await self._pause(delay_s)

    async def _start(self, role: Role) -> Child | None:
        """A new process; None where the server ends."""
        ours, theirs = socket.socketpair()
        messages, writer = await asyncio.open_connection(sock=ours)
        if self._ending.is_set():
            writer.close()
            theirs.close()
            return None
        self._children[role.name] = child = Child(self._spawn(role, theirs), messages, writer)
        theirs.close()
        return child

    def _spawn(self, role: Role, lifeline: socket.socket) -> subprocess.Popen[bytes]:
        assignment = Assignment(
            settings=self._settings,
            name=role.name,
            number=role.number,
            folder=self._folder,
            address=self._address,
            lifeline=lifeline.fileno(),
            listener=role.listener.fileno(),
            segments=self._segments,
            shares=self._shares,
            accounts=self._accounts,
        )
        process = subprocess.Popen(
            # Not the folder that the server was started in: what lies there is not ours.
            [sys.executable, "-P", "-m", role.module],
            stdin=subprocess.PIPE,
            pass_fds=(
                *(assignment.lifeline, assignment.listener, assignment.shares, assignment.accounts),
                *assignment.segments,
            ),
            # A Ctrl-C is for the supervisor alone: it tells the others when to end.
            process_group=0,
        )
        assert process.stdin is not None
        with process.stdin as stdin, contextlib.suppress(BrokenPipeError):
            pickle.dump(assignment, stdin)
        return process

    def _on_ready(self, name: str, again: bool) -> None:
        """Announce the server when the last of its processes has become ready for the first time."""
        if again:
            logger.info("%s is ready again", name)
        if self._any_frontend_ready:
            self._stand_in.set_active(False)
        ready = [child for child in self._children.values() if child.ready]
        if self._announced or len(ready) <= self._settings.frontends:
            return
        self._announced = True
        for line in next(child.announcement for child in ready if child.announcement):
            self._say(line)

    @property
    def _any_frontend_ready(self) -> bool:
        return any(child.ready for name, child in self._children.items() if name != ENGINE)

    async def _watch(self) -> None:
        """Kill a process that is silent for too long.

        Silence is counted in turns of this loop: a machine may have been suspended.
        """
        while True:
            await asyncio.sleep(BEAT_S)
            for name, child in self._children.items():
                child.silent_s += BEAT_S
                if child.ready and child.silent_s > self._hung_after_s and child.process.returncode is None:
                    logger.critical("%s hangs: not heard of for %g s, killing it", name, child.silent_s)
                    child.process.kill()

    def _give_up(self, failure: str) -> None:
        self._failure = self._failure or failure
        self._ending.set()

    def _on_signal(self, sig: signal.Signals) -> None:
        if self._ending.is_set():
            for child in self._children.values():
                child.process.kill()
            shutil.rmtree(self._folder, ignore_errors=True)
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        log_draining(self._settings.drain_timeout_s)
        self._end_signal = sig
        self._ending.set()

    async def _end(
        self, keepers: Iterable[asyncio.Task[None]], names: Iterable[str], sig: signal.Signals, within_s: float
    ) -> None:
        """Ask processes to end, and kill those that do not.

        Those not known to be ready get SIGTERM: it kills a process that loads, and a frontend may answer already.
        """
        children = [self._children[name] for name in names if name in self._children]
        for child in children:
            child.process.send_signal(sig if child.ready else signal.SIGTERM)
        _, late = await asyncio.wait(keepers, timeout=within_s)
        if late:
            for child in children:
                child.process.kill()
            await asyncio.wait(late)
        for keeper in keepers:
            keeper.result()

    async def _pause(self, delay_s: float) -> None:
        try:
            await asyncio.wait_for(self._ending.wait(), delay_s)
        except TimeoutError:
            return


def supervise(
    settings: Settings, hung_after_s: float = HUNG_AFTER_S, restart_delays_s: Sequence[float] = RESTART_DELAYS_S
) -> int:
    """Serve over several processes until a signal; the exit status, as `offramp.server.serve.run`'s."""
    configure_logging(log_config(settings.log_level))
    say = logging.getLogger("offramp.announcement").info
    try:
        log_keys(settings)
        listener = listen(settings.host, settings.port)
    except ValueError as error:
        print(f"offramp: {error}", file=sys.stderr)
        return 1
    # Until the supervisor handles it: an exit by which the folder is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="offramp-") as folder:
        try:
            supervisor = Supervisor(settings, listener, Path(folder), say, hung_after_s, restart_delays_s)
        except OSError as error:
            print(f"offramp: {folder} cannot hold a socket ({error}); set TMPDIR to another folder", file=sys.stderr)
            return 1
        failure = asyncio.run(supervisor.run())
    if failure is not None:
        print(f"offramp: {failure}", file=sys.stderr)
        return 1
    logger.info("stopped")
    return 0
