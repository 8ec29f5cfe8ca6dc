"""Limits of the HTTP server: sizes, times and number of connections."""

from __future__ import annotations

import resource
from dataclasses import dataclass

# Default of the connections of one process.
USUAL_CONNECTIONS = 10_000

# Descriptors for everything but connections: libraries, other sockets, connections that are being closed.
RESERVED_DESCRIPTORS = 128


@dataclass(frozen=True)
class HttpLimits:
    """Sizes in bytes; times in seconds, accurate to about one.

    url_bytes: of the request's target. head_bytes: of request line and headers, and of trailers and chunk extensions.
    head_s: from the first byte of a request, or from the connection's start, to the end of its headers. body_s: from
    there to the end of the body. keep_alive_s: between an answer and the next request. write_s: for the client to read
    what was written. connections: in this process. client_connections: of one address; 0 is no limit.
    unparsed_bytes: of requests that came before the answers to earlier ones, on all connections.
    """

    url_bytes: int = 8 * 1024
    head_bytes: int = 32 * 1024
    num_headers: int = 100
    head_s: float = 10.0
    body_s: float = 60.0
    # Longer than the 60 s of common load balancers, which should close an idle connection first.
    keep_alive_s: float = 75.0
    write_s: float = 30.0
    connections: int = USUAL_CONNECTIONS
    client_connections: int = 0
    unparsed_bytes: int = 64 * 1024**2


def raise_descriptor_limit() -> None:
    """Raise the limit of this process on descriptors to the system's."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connections_of_one_process(wanted: int, num_processes: int, descriptors: int | None = None) -> int:
    """Connections of each process, for `wanted` in all; 0 is the default for each.

    descriptors: that a process may have open; None for this process's limit.
    """
    limit = descriptors or resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = max(1, limit - min(RESERVED_DESCRIPTORS, limit // 2))
    return min(-(-wanted // num_processes) or USUAL_CONNECTIONS, most)
