"""A uvicorn server in front of the application, with bounds on connections."""

import errno
import logging
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import uvicorn
from litestar import Litestar

from gateway.http.protocol import MAX_HEAD_S, BoundedHttpProtocol

LAST_ANSWERS_S = 2
"""Seconds to finish writing responses after all requests have ended."""
BACKLOG, MAX_CONNECTIONS, KEPT_FILES = 4096, 65_536, 512
"""Connections in the kernel's queue, open connections, and file descriptors for everything else.

Requests must wait in our own queue, which is bounded and fair. The kernel's does not distinguish tenants, and when it is full
clients retry after 1, 3, 7, 15, 31 seconds.
"""


def _max_connections() -> int:
    """Raise the limit of open files as far as allowed, and return the number of connections that it permits."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return MAX_CONNECTIONS if hard == resource.RLIM_INFINITY else max(1, min(MAX_CONNECTIONS, hard - KEPT_FILES))


class Server(uvicorn.Server):
    """uvicorn server without signal handlers: its owner handles signals."""

    def stop(self) -> None:
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_server(app: Litestar, host: str, port: int) -> Server:
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=partial(BoundedHttpProtocol, max_connections=_max_connections()),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_config=None,
        log_level=logging.ERROR,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=MAX_HEAD_S,
        timeout_graceful_shutdown=LAST_ANSWERS_S,
    )
    return Server(config)


def listen(host: str, port: int) -> list[socket.socket]:
    """Return sockets that listen on each local address of `host`. Raises OSError if the port is taken."""
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets, missing = list[socket.socket](), OSError(errno.EADDRNOTAVAIL, f"this machine has no address {host}")
    with ExitStack() as opened:
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in addresses):
            try:
                sockets.append(opened.enter_context(socket.create_server(address, family=family, backlog=BACKLOG)))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error
        if not sockets:
            raise missing
        opened.pop_all()
    return sockets
