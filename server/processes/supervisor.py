"""The supervisor: starts the engine process and the frontends, starts again what has died, and ends all in order.

It loads nothing large, and answers requests only while no frontend runs, so that little in it can fail.

    supervisor ─┬─ engine        owns the device; frontends connect to its Unix socket
                ├─ frontend-0    all frontends accept from one listening socket, which the supervisor keeps open:
                └─ frontend-1    when one dies, another accepts the connections that wait
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import shutil
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec

from offramp.server.processes.stand_in import StandIn
from offramp.server.processes.supervisor_channel import BEAT_S, Assignment, ProcessReport
from offramp.server.serve import configure_logging, listen, log_config, log_draining, log_keys, url
from offramp.server.settings import Settings

logger = logging.getLogger(__name__)

ENGINE = "engine"

# A process that was ready and has sent nothing for so long is killed. Its event loop sends the reports, and no step and
# no decoding delays them.
HUNG_AFTER_S = 10.0

RESTART_DELAYS_S = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)

# Time for a process to end, beyond the time that the settings give it for draining.
END_S = 10.0


class RestartDelays:
    """How long one process that has died waits for its next start.

    delays_s: after the first death in a row before it was ready, after the second and so on; the last for all others.
    A process that was ready waits the first delay: its start takes seconds already.
    """

    def __init__(self, delays_s: Sequence[float] = RESTART_DELAYS_S) -> None:
        self._delays_s = delays_s
        self._failed_starts = 0

    def after(self, ready: bool) -> float:
        """Seconds to wait after a death. ready: whether the process was ready before."""
        self._failed_starts = 0 if ready else self._failed_starts + 1
        return self._delays_s[min(max(self._failed_starts, 1), len(self._delays_s)) - 1]


class Child:
    """A running process, and what it has reported. announcement: not None once it is ready."""

    def __init__(self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.announcement: list[str] | None = None
        self.failure: str | None = None
        self.silent_s = 0.0
        self._process = process
        self._reader = reader
        # The child takes the end of this stream for the end of the supervisor.
        self._writer = writer

    @classmethod
    async def start(cls, assignment: Assignment) -> Child:
        """Start a process."""
        own_end, child_end = socket.socketpair()
        with child_end:
            process = await asyncio.create_subprocess_exec(
                # -P: modules in the folder that the server was started in are not ours.
                *(sys.executable, "-P", "-m", assignment.module),
                stdin=child_end.fileno(),
                pass_fds=(assignment.listener, *assignment.segments, assignment.connections, assignment.accounts),
                # A Ctrl-C is for the supervisor alone: it tells the others when to end.
                process_group=0,
            )
        reader, writer = await asyncio.open_connection(sock=own_end)
        writer.write(pickle.dumps(assignment))
        return cls(process, reader, writer)

    @property
    def ready(self) -> bool:
        """Whether it has begun its work."""
        return self.announcement is not None

    async def reports(self) -> AsyncIterator[ProcessReport]:
        """Yield each report until the process has ended."""
        # A process that dies before it has read its assignment resets the connection.
        with suppress(ConnectionError):
            while line := await self._reader.readline():
                report = msgspec.json.decode(line, type=ProcessReport)
                self.silent_s = 0.0
                self.failure = report.failure or self.failure
                if report.announcement is not None:
                    self.announcement = report.announcement
                yield report
        self._writer.close()
        await self._process.wait()

    def send_signal(self, sig: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        with suppress(ProcessLookupError):
            self._process.send_signal(sig)

    def describe_end(self) -> str:
        """How it ended, for the log."""
        status = self._process.returncode or 0
        if self.failure is not None:
            return self.failure
        return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


class Supervisor:
    """Keeps one engine process and `settings.frontends` frontends running, until a signal or a failed start.

    listener: the HTTP socket. folder: empty, for this run alone. hung_after_s, restart_delays_s: see the constants.
    """

    def __init__(
        self, settings: Settings, listener: socket.socket, folder: Path, hung_after_s: float, delays_s: Sequence[float]
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._folder = folder
        self._hung_after_s = hung_after_s
        self._delays_s = delays_s
        self._engine_listener = socket.socket(socket.AF_UNIX)
        self._engine_listener.bind(str(folder / ENGINE))
        self._engine_listener.listen()
        self._children: dict[str, Child] = {}
        self._stand_in = StandIn(listener)
        self._announced = False
        self._failure: str | None = None
        self._ending = asyncio.Event()
        self._end_signal = signal.SIGINT

    async def run(self) -> str | None:
        """Start everything, keep it running, and end it; returns why the start failed."""
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, self._on_signal, sig)
        tasks = {
            assignment.name: asyncio.create_task(self._keep_running(assignment)) for assignment in self._assignments()
        }
        for task in tasks.values():
            # A task returns when the server ends. One that fails is a bug of ours, and must not leave half a server.
            task.add_done_callback(lambda _: self._ending.set())
        watch = asyncio.create_task(self._kill_silent_children())
        await self._ending.wait()
        watch.cancel()
        self._stand_in.set_active(False)
        self._listener.close()
        # The engine last: the frontends wait for its answers.
        engine = {ENGINE: tasks.pop(ENGINE)}
        drain_s = self._settings.drain_delay_s + self._settings.drain_timeout_s
        await self._end(tasks, self._end_signal, drain_s + END_S)
        await self._end(engine, signal.SIGTERM, END_S)
        return self._failure

    def _assignments(self) -> list[Assignment]:
        numbers = range(self._settings.frontends)
        engine = Assignment(
            settings=self._settings,
            name=ENGINE,
            module="offramp.server.processes.engine_process",
            number=0,
            folder=self._folder,
            address=url(self._listener),
            listener=self._engine_listener.fileno(),
            segments=tuple(os.memfd_create(f"offramp-frontend-{number}") for number in numbers),
            connections=os.memfd_create("offramp-connections"),
            accounts=os.memfd_create("offramp-accounts"),
        )
        frontend = replace(engine, module="offramp.server.processes.frontend_process", listener=self._listener.fileno())
        return [engine, *(replace(frontend, name=f"frontend-{number}", number=number) for number in numbers)]

    async def _keep_running(self, assignment: Assignment) -> None:
        """Run a process, and a new one each time it has died, until the server ends."""
        name, delays, was_ready = assignment.name, RestartDelays(self._delays_s), False
        while not self._ending.is_set():
            self._children[name] = child = await Child.start(assignment)
            if self._ending.is_set():
                child.send_signal(signal.SIGTERM)
            async for report in child.reports():
                if report.announcement is not None:
                    if was_ready:
                        logger.info("%s is ready again", name)
                    was_ready = True
                    self._update()
            del self._children[name]
            if self._ending.is_set():
                return
            self._update()
            if not was_ready:
                self._failure = child.failure or f"{name} has ended before it was ready: {child.describe_end()}"
                self._ending.set()
                return
            delay_s = delays.after(child.ready)
            when = f"in {delay_s:g} s" if delay_s else "at once"
            logger.error("%s has died: %s; the next starts %s", name, child.describe_end(), when)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), delay_s)

    def _update(self) -> None:
        """Announce the server once all processes are ready, and answer requests while no frontend is."""
        ready = {name: child.announcement for name, child in self._children.items() if child.announcement is not None}
        if not self._announced and len(ready) > self._settings.frontends:
            self._announced = True
            for line in ready["frontend-0"]:
                logging.getLogger("offramp.announcement").info(line)
        without_frontends = self._announced and not ready.keys() - {ENGINE}
        self._stand_in.set_active(without_frontends and not self._ending.is_set())

    async def _kill_silent_children(self) -> None:
        """Silence is counted in turns of this loop, not by a clock: a machine may have been suspended."""
        while True:
            await asyncio.sleep(BEAT_S)
            for name, child in self._children.items():
                child.silent_s += BEAT_S
                if child.ready and child.silent_s > self._hung_after_s:
                    logger.critical("%s hangs: not heard of for %g s, killing it", name, child.silent_s)
                    child.send_signal(signal.SIGKILL)

    def _on_signal(self, sig: signal.Signals) -> None:
        """End in order; at the second signal, at once."""
        if self._ending.is_set():
            for child in self._children.values():
                child.send_signal(signal.SIGKILL)
            shutil.rmtree(self._folder, ignore_errors=True)
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        log_draining(self._settings.drain_timeout_s)
        self._end_signal = sig
        self._ending.set()

    async def _end(self, tasks: Mapping[str, asyncio.Task[None]], sig: signal.Signals, timeout_s: float) -> None:
        """Ask processes to end, and kill those that do not.

        A process not known to be ready gets SIGTERM: it ends one that loads, and a frontend may answer already.
        """
        children = [self._children[name] for name in tasks if name in self._children]
        for child in children:
            child.send_signal(sig if child.ready else signal.SIGTERM)
        _, late = await asyncio.wait(tasks.values(), timeout=timeout_s)
        for child in children if late else ():
            child.send_signal(signal.SIGKILL)
        await asyncio.gather(*tasks.values())


def supervise(
    settings: Settings, hung_after_s: float = HUNG_AFTER_S, restart_delays_s: Sequence[float] = RESTART_DELAYS_S
) -> int:
    """Serve over several processes until a signal; returns the exit status, as `offramp.server.serve.run`."""
    configure_logging(log_config(settings.log_level))
    try:
        log_keys(settings)
        listener = listen(settings.host, settings.port)
    except ValueError as error:
        print(f"offramp: {error}", file=sys.stderr)
        return 1
    # Until the supervisor handles it: an exit that removes the folder.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="offramp-") as folder:
        try:
            supervisor = Supervisor(settings, listener, Path(folder), hung_after_s, restart_delays_s)
        except OSError as error:
            print(f"offramp: {folder} cannot hold a socket ({error}); set TMPDIR to another folder", file=sys.stderr)
            return 1
        failure = asyncio.run(supervisor.run())
    if failure is not None:
        print(f"offramp: {failure}", file=sys.stderr)
        return 1
    logger.info("stopped")
    return 0
