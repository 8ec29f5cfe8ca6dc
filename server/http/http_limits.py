"""Limits of the HTTP server: what a client may send before it is known, how long it may take, how many may come."""

from __future__ import annotations

import resource
from dataclasses import dataclass

# Connections that a process takes unless told otherwise.
USUAL_CONNECTIONS = 10_000

# Descriptors kept for everything but connections: libraries, sockets of our own, connections that are being closed.
RESERVED_DESCRIPTORS = 128


@dataclass(frozen=True)
class HttpLimits:
    """Sizes in bytes, times in seconds, kept to about one.

    url_bytes: of the request line's target. head_bytes: of request line and headers; of trailers and chunk extensions
    too. head_s: from the first byte of a request, or from the connection's start, to the end of its headers. body_s:
    from there to the end of the body. keep_alive_s: between an answer and the next request. write_s: for reading what
    has been written. connections: in this process. client_connections: of one address; 0 is no limit.
    """

    url_bytes: int = 8 * 1024
    head_bytes: int = 32 * 1024
    num_headers: int = 100
    head_s: float = 10.0
    body_s: float = 60.0
    # Longer than the 60 s of common load balancers: they should be the first to close an idle connection, not we.
    keep_alive_s: float = 75.0
    write_s: float = 30.0
    connections: int = USUAL_CONNECTIONS
    client_connections: int = 0


def raise_descriptor_limit() -> None:
    """Allow this process as many descriptors as the system lets it have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connections_of_one_process(wanted: int, num_processes: int, descriptors: int | None = None) -> int:
    """Connections that each of some processes takes, of `wanted` in all; 0 is the usual number.

    descriptors: that a process may have open. Default: this one's limit.
    """
    limit = descriptors or resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = max(1, limit - min(RESERVED_DESCRIPTORS, limit // 2))
    return min(-(-wanted // num_processes) or USUAL_CONNECTIONS, most)
