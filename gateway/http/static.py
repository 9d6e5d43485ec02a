"""Serves the embedded dashboard: the files of dashboards/web, under a content policy that restricts pages to this origin."""

import hashlib
from pathlib import Path
from typing import Any

from litestar import Request, Response, get
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from litestar.response import Redirect

WEB = Path(__file__).parents[2] / "dashboards" / "web"

_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}

AnyRequest = Request[Any, Any, Any]


class File:
    """One file, read once. `etag` lets browsers cache it."""

    def __init__(self, path: Path) -> None:
        self.body = path.read_bytes()
        self.type = _TYPES[path.suffix]
        self.etag = f'"{hashlib.blake2b(self.body, digest_size=8).hexdigest()}"'


def read_files(folder: Path) -> dict[str, File]:
    """Return the files by path below /dashboard. No others are ever served, whatever the request path."""
    return {
        path.relative_to(folder).as_posix(): File(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in _TYPES
    }


def dashboard_handlers(folder: Path = WEB) -> list[HTTPRouteHandler]:
    files = read_files(folder)

    @get("/", sync_to_thread=False)
    def root() -> Redirect:
        return Redirect("/dashboard/")

    @get("/dashboard", sync_to_thread=False)
    def index(request: AnyRequest) -> Response[bytes]:
        return _answer(files, "index.html", request)

    @get("/dashboard/{name:path}", sync_to_thread=False)
    def file(request: AnyRequest, name: FromPath[str]) -> Response[bytes]:
        return _answer(files, name.removeprefix("/"), request)

    return [root, index, file]


def _answer(files: dict[str, File], name: str, request: AnyRequest) -> Response[bytes]:
    file = files.get(name)
    if file is None:
        raise NotFoundException(f"the dashboard has no {name!r}")
    headers = {**HEADERS, "etag": file.etag}
    if request.headers.get("if-none-match") == file.etag:
        return Response(b"", status_code=304, headers=headers)
    return Response(file.body, media_type=file.type, headers=headers)
