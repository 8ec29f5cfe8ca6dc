"""A server on bare sockets, whose answers a test gives."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

OK, ERROR = (b"HTTP/1.1 %s\r\nContent-Length: 2\r\n\r\n{}" % status for status in (b"200 OK", b"500 Oh"))


class RawServer:
    """answer: the bytes for a whole request; None: no answer; b"": the connection ends."""

    process = None

    def __init__(self, answer: Callable[[bytes], bytes | None]) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=500)
        self.port = self._listener.getsockname()[1]
        self.sources: list[str] = []

    def __enter__(self) -> RawServer:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take no further connection."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def reset_peak(self) -> None:
        """A server has this method; here there is no process."""

    def peak_rss_bytes(self) -> int:
        """A server has this method; here there is no process."""
        return 0

    def _accept(self) -> None:
        while True:
            try:
                connection, (source, _) = self._listener.accept()
            except OSError:
                return
            self.sources.append(source)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as file:
            try:
                while line := file.readline():
                    head = line
                    while not head.endswith(b"\r\n\r\n") and (line := file.readline()):
                        head += line
                    size = [int(row[15:]) for row in head.split(b"\r\n") if row.lower().startswith(b"content-length:")]
                    answer = self._answer(head + file.read(size[0] if size else 0))
                    if answer is None:
                        file.read()
                    if not answer:
                        return
                    connection.sendall(answer)
            except (OSError, ValueError):
                return
