"""The page at /docs: Swagger UI from this package, so that it works without the internet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse

FOLDER = Path(__file__).parent / "swagger_ui"

# Addresses in the files are relative, for servers behind a proxy's path.
FILES = {
    "/docs": ("index.html", "text/html"),
    "/docs/start.js": ("start.js", "text/javascript"),
    "/docs/swagger-ui-bundle.js": ("swagger-ui-bundle.js", "text/javascript"),
    "/docs/swagger-ui.css": ("swagger-ui.css", "text/css"),
}

# The page loads nothing from other hosts.
POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:"


def add_docs_page(app: FastAPI) -> None:
    """Add /docs and its files."""
    for path, (name, media_type) in FILES.items():
        app.add_route(path, _file(name, media_type), include_in_schema=False)


def _file(name: str, media_type: str) -> Callable[[Request], Awaitable[FileResponse]]:
    async def answer(request: Request) -> FileResponse:
        return FileResponse(FOLDER / name, headers={"Content-Security-Policy": POLICY}, media_type=media_type)

    return answer
