"""One connection: uvicorn's requests and answers, with limits on sizes and times.

    bytes ── data_received ── RequestParser ── on_head, on_body, on_end ── uvicorn's cycle ── application
                  └ while a whole request waits for its answer: bytes stay unparsed, and reading pauses

So a connection has one request at a time, however many a client sends without waiting for answers.

A connection ends after an answer, without one, or with a last answer of its own (`_end_with`) after all others.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from offramp.server.http.cycles import Cycles, Flow
from offramp.server.http.parser import BODY, REQUEST, Expects, Head, RequestParser
from offramp.server.http.problems import OVERLOADED, REQUEST_TIMEOUT, Problem, retry_after
from offramp.server.http.tcp import Unread, is_reset, reset

if TYPE_CHECKING:
    from offramp.server.http.uvicorn_config import HttpConfig

# Time for a client to read its last answer, while its bytes are thrown away. If a socket is closed with unread bytes,
# the kernel sends a reset, which can destroy the answer.
LINGER_S = 2.0

# Wait of a new connection for its first request while the server ends.
FIRST_REQUEST_S = 0.2

# Delays of the checks for a reset after a client has ended its side; the sweep checks later.
LOOKS_S = (0.01, 0.1, 0.4)

# Largest body that is read and thrown away after a refusal, so that the connection can stay open.
MOST_THROWN_AWAY_BYTES = 64 * 1024


class Refused(Exception):
    """The gate has refused a request. answer: its last answer."""

    def __init__(self, answer: bytes) -> None:
        super().__init__("the gate has refused the request")
        self.answer = answer


class HttpProtocol(asyncio.Protocol):
    """A connection of uvicorn and of Connections."""

    def __init__(
        self,
        config: HttpConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if not config.loaded:
            config.load()
        self.address = ""
        self._state = server_state
        self._gate = config.gate
        self._loop = _loop or asyncio.get_running_loop()
        self._all = config.connections
        self._limits = config.connections.limits
        self._parser = RequestParser(self._limits, self)
        self._cycles = Cycles(config, server_state, app_state, self._loop, self._on_response)
        # The newest request: not yet whole, in progress, or answered.
        self._cycle: RequestResponseCycle | None = None
        # Whether the newest request was refused and the connection stays open: its body is thrown away.
        self._refused = False
        self._unread = Unread(self._limits.write_s)
        self._since_s = self._all.now_s
        self._expected: Expects = REQUEST
        self._unparsed = b""
        self._last_answer: bytes | None = None
        # ended: the client has ended its side.
        self._ignores_input = self._ended = False

    # Called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept or refuse the connection."""
        self._transport = cast(asyncio.Transport, transport)
        self._flow = Flow(self._transport)
        self.address = self._cycles.connect(self._transport, self._flow, self._close)
        self._state.connections.add(cast(Any, self))
        problem = self._all.enter(self)
        if problem is not None:
            self._reject(problem)
        elif self._all.closed:
            self.shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application that the client is gone."""
        self._state.connections.discard(cast(Any, self))
        self._all.leave(self)
        self._disconnect()
        self._flow.resume_writing()
        self._stop_reading()
        self._parser.forget()

    def data_received(self, data: bytes) -> None:
        """Parse the bytes, or keep them until the answer before is sent."""
        if self._ignores_input:
            return
        if self._unparsed or self._is_answering:
            self._keep(data)
        else:
            self._parse(data)

    def eof_received(self) -> bool:
        """The client has ended its side. Returns whether to stay open: it may still read an answer."""
        if not self._is_answering and not self._unparsed:
            return False
        cycle = self._cycle
        if not self._ended and cycle and cycle.scope["http_version"] == "1.1" and not cycle.response_started:
            # An interim answer (RFC 9110, 15.2): a client that is gone answers with a reset.
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            cycle.waiting_for_100_continue = False
        self._ended = True
        self._look_for_reset(LOOKS_S)
        return True

    def pause_writing(self) -> None:
        """The client does not read as fast as the answers come."""
        self._flow.pause_writing()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._flow.resume_writing()

    # Called by the server and by Connections

    def shutdown(self) -> None:
        """End after the answer in progress. A new connection waits a moment for its first request."""
        if self._cycle is not None and not self._cycle.response_complete:
            self._cycle.keep_alive = False
        elif self._cycle is None and not self._ignores_input:
            self._loop.call_later(FIRST_REQUEST_S, self._close_unless_answering)
        else:
            self._transport.close()

    def _close_unless_answering(self) -> None:
        if self._is_idle:
            self._transport.close()

    @property
    def _is_answering(self) -> bool:
        """Whether a whole request waits for its answer."""
        return not self._is_idle and not cast(RequestResponseCycle, self._cycle).more_body

    @property
    def _is_idle(self) -> bool:
        """Whether no request has begun that still needs an answer."""
        return self._cycle is None or self._cycle.response_complete or self._cycle.disconnected

    @property
    def idle_since_s(self) -> float | None:
        """See connections.Connection. Connections after their last answer are the first to end."""
        if not self._is_idle or self._unparsed or self._parser.expects is BODY:
            return None
        return -1.0 if self._ignores_input else self._since_s

    @property
    def waits_since_s(self) -> float | None:
        """See connections.Connection. It also waits while the client does not read, or whole requests are unparsed."""
        if self._is_answering and not self._flow.write_paused:
            return None
        return -1.0 if self._ignores_input else self._since_s

    def check(self, now_s: float) -> None:
        """See connections.Connection."""
        if self._unread.is_overdue(self._transport, now_s):
            reset(self._transport)
            self._all.leave(self)
        elif self._is_answering:
            if (self._ended or self._flow.read_paused) and is_reset(self._transport):
                self.end()
        elif self._flow.read_paused:
            # A client cannot be late while the server does not read.
            self._since_s = now_s
        elif now_s - self._since_s > (allowed_s := self._allowed_s()):
            self._time_out(allowed_s)

    def end(self) -> None:
        """See connections.Connection."""
        self._transport.abort()
        self._all.leave(self)

    def _allowed_s(self) -> float:
        if self._ignores_input:
            return LINGER_S
        if self._expected is BODY:
            return self._limits.body_s
        between = self._expected is REQUEST and self._cycle is not None
        return self._limits.keep_alive_s if between else self._limits.head_s

    def _time_out(self, allowed_s: float) -> None:
        if self._ignores_input or self._expected is REQUEST:
            self._transport.close()
            return
        what = "body was" if self._expected is BODY else "headers were"
        detail = f"the request's {what} not whole after {allowed_s:g} s: send it faster, or less"
        self._reject(Problem(REQUEST_TIMEOUT, detail))

    def _look_for_reset(self, after_s: tuple[float, ...]) -> None:
        if self._transport.is_closing() or not self._is_answering:
            return
        if is_reset(self._transport):
            self.end()
        elif after_s:
            self._loop.call_later(after_s[0], self._look_for_reset, after_s[1:])

    # Bytes to requests

    def _keep(self, data: bytes) -> None:
        if not self._all.count_unparsed(len(data)):
            detail = "too many bytes of requests wait for their turn: wait for each answer, and try again later"
            self._reject(Problem(OVERLOADED, detail, retry_after(1)))
            return
        self._unparsed += data
        self._flow.hold()

    def _take_unparsed(self) -> bytes:
        data, self._unparsed = self._unparsed, b""
        self._all.count_unparsed(-len(data))
        return data

    def _stop_reading(self) -> None:
        self._ignores_input = True
        self._take_unparsed()

    def _parse(self, data: bytes) -> None:
        """Parse the bytes up to the end of a request; keep the rest."""
        start = 0
        try:
            while start < len(data) and not self._ignores_input:
                if self._is_answering:
                    self._keep(data[start:])
                    break
                start = self._parser.feed(data, start)
                if self._refused and self._parser.expects is REQUEST:
                    self._refused, self._since_s = False, self._all.now_s
                    if start < len(data):
                        self._keep(data[start:])
                        self._all.pipelined.put(self._go_on)
                        break
        except Problem as problem:
            self._all.note(self.address, problem.detail)
            self._reject(problem)
        except Refused as refused:
            self._end_with(refused.answer)
        if self._parser.expects is not self._expected:
            self._expected, self._since_s = self._parser.expects, self._all.now_s

    def on_head(self, head: Head) -> None:
        """See parser.Listener. Raises Refused."""
        scope = self._cycles.scope(head)
        keep_alive = self._can_stay_open(head)
        answer = self._gate.refuse(scope, self._state.default_headers, keep_alive)
        if answer is None:
            self._cycle = self._cycles.start(scope, head)
        elif keep_alive:
            self._refused = True
            self._transport.write(answer)
        else:
            raise Refused(answer)

    def _can_stay_open(self, head: Head) -> bool:
        """Whether to read on after a refusal: a new connection costs more than the rest of a small request."""
        size = head.fields.get(b"content-length")
        small = size is not None and int(size) <= MOST_THROWN_AWAY_BYTES and b"expect" not in head.fields
        ends = self._all.draining or self._all.closed or self._ended or self._flow.write_paused
        return head.keep_alive and small and not ends

    def on_body(self, body: bytes) -> None:
        """See parser.Listener."""
        cycle = cast(RequestResponseCycle, self._cycle)
        if self._refused or cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self._flow.pause_reading()
        cycle.message_event.set()

    def on_end(self) -> None:
        """See parser.Listener."""
        if self._refused:
            return
        cycle = cast(RequestResponseCycle, self._cycle)
        cycle.more_body = False
        cycle.message_event.set()

    # Requests to answers

    def _on_response(self) -> None:
        """An answer has been written: go on with the next request, or end."""
        self._state.total_requests += 1
        self._since_s = self._all.now_s
        if self._transport.is_closing():
            return
        if self._unparsed:
            self._all.pipelined.put(self._go_on)
        else:
            self._settle()

    def _go_on(self) -> None:
        """Parse the next of several requests that came together."""
        if self._transport.is_closing():
            return
        self._parse(self._take_unparsed())
        self._settle()

    def _settle(self) -> None:
        """Read on, or end if no answer is due."""
        if not self._unparsed:
            self._flow.release()
        if self._is_idle and self._last_answer is not None:
            self._write_last(self._last_answer)
        elif self._ended and not self._is_answering and not self._unparsed:
            self._transport.close()

    def _close(self) -> None:
        """After an answer with Connection: close."""
        if (self._unparsed or cast(RequestResponseCycle, self._cycle).more_body) and not self._ended:
            self._linger()
        else:
            self._transport.close()

    def _reject(self, problem: Problem) -> None:
        if self._refused:
            # It has its answer.
            self._end_with(b"")
            return
        cycle = self._cycle
        if cycle is not None and cycle.more_body:
            # The request stays incomplete.
            self._disconnect()
            if cycle.response_started:
                # Its answer has begun, so it gets no other.
                self._end_with(b"")
                return
        self._end_with(self._gate.reject(problem, self.address, self._state.default_headers))

    def _disconnect(self) -> None:
        """Tell the application that its client has gone."""
        if not self._is_idle:
            cycle = cast(RequestResponseCycle, self._cycle)
            cycle.disconnected = True
            cycle.message_event.set()

    def _end_with(self, answer: bytes) -> None:
        """Stop reading, and end the connection with this answer after all others."""
        self._stop_reading()
        self._last_answer = answer
        if self._is_idle:
            self._write_last(answer)

    def _write_last(self, answer: bytes) -> None:
        self._last_answer = None
        self._transport.write(answer)
        self._linger()

    def _linger(self) -> None:
        self._stop_reading()
        self._since_s = self._all.now_s
        self._flow.release()
        if self._transport.can_write_eof():
            self._transport.write_eof()
