"""The embedded dashboard: the files of dashboards/web as they are, under a policy that lets a page talk to us alone."""

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
    """One file, read once; `etag` lets a browser keep what has not changed."""

    def __init__(self, path: Path) -> None:
        self.body = path.read_bytes()
        self.type = _TYPES[path.suffix]
        self.etag = f'"{hashlib.blake2b(self.body, digest_size=8).hexdigest()}"'


def read_files(folder: Path) -> dict[str, File]:
    """By address below /dashboard; only these are ever served, whatever a path says."""
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
    found = files.get(name)
    if found is None:
        raise NotFoundException(f"the dashboard has no {name!r}")
    headers = {**HEADERS, "etag": found.etag}
    if request.headers.get("if-none-match") == found.etag:
        return Response(b"", status_code=304, headers=headers)
    return Response(found.body, media_type=found.type, headers=headers)
