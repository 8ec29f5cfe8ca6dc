"""Which names the server answers to: a web page elsewhere must not reach it under a name of its own."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from server.problems import UNKNOWN_HOST, Problem, problem_response

# Asked by address, by whoever runs the server.
PROBES = ("/livez", "/readyz", "/metrics")


class HostMiddleware:
    """Refuses requests whose Host is not one of some names.

    allowed: names with commas between, without ports; "*.example.com" is every name below example.com.
    """

    def __init__(self, app: ASGIApp, allowed: str) -> None:
        self.app = app
        names = [name.strip().lower() for name in allowed.split(",") if name.strip()]
        self._names = frozenset(name for name in names if not name.startswith("*."))
        self._endings = tuple(name[1:] for name in names if name.startswith("*."))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if scope["type"] == "http" and scope["path"] not in PROBES:
            host = _name(dict(scope["headers"]).get(b"host", b"").decode("latin-1"))
            if host not in self._names and not host.endswith(self._endings):
                detail = f"the server does not answer to the host {host[:100]!r}: use a name that --allowed-hosts has"
                app = problem_response(scope, Problem(UNKNOWN_HOST, detail))
        await app(scope, receive, send)


def _name(host: str) -> str:
    """Without the port."""
    host = host.strip().lower()
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
