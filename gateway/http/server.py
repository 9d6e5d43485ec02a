"""Runs a gateway on a port: uvicorn, one process, one thread, one event loop. SIGINT and SIGTERM end everything."""

import asyncio
import errno
import gc
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import uvicorn
import uvloop

from gateway.app import Gateway, build_app
from gateway.fleet.fleet import Fleet
from gateway.fleet.supervisor import Command, worker_command
from gateway.http.auth import check_bind
from gateway.http.protocol import MAX_HEAD_S, BoundedHttpProtocol
from gateway.policy.reload import AuditLog, Reloader
from gateway.policy.schema import Policy
from gateway.settings import Settings

LOOK_EVERY_S = 1.0
LAST_ANSWERS_S = 2
"""For what is still being written when everything has ended."""
BACKLOG, MAX_CONNECTIONS, KEPT_FILES = 4096, 65_536, 512
"""Connections that the kernel holds, that are open, and files for all else. Whoever waits has to wait in our own queue, which
is bounded and fair: the kernel's knows no tenants, and who finds it full tries again after 1, 3, 7, 15, 31 seconds."""

log = logging.getLogger("headway")


def _max_connections() -> int:
    """As many as there may be files, and as many files as this process may ask for."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return MAX_CONNECTIONS if hard == resource.RLIM_INFINITY else max(1, min(MAX_CONNECTIONS, hard - KEPT_FILES))


class Server(uvicorn.Server):
    """Signals are its owner's."""

    def stop(self) -> None:
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_server(gateway: Gateway, host: str, port: int) -> Server:
    config = uvicorn.Config(
        build_app(gateway),
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
    """On each address of `host` that this machine has. Raises OSError when the port is taken."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets, missing = list[socket.socket](), OSError(errno.EADDRNOTAVAIL, f"this machine has no address {host}")
    with ExitStack() as opened:
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
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


_SWITCH_S = 0.0005
"""How long another thread may keep the interpreter while the event loop wants it: each time that the loop reads or writes, the
ledger's or the exporter's may take it, and Python's own 5 ms are ten requests."""
_GC_THRESHOLDS = (2_000, 2, 2_500)
"""How many new objects make a young collection, and how many of those a middle one. What lives long here (runs, chains, pages)
is in no cycle and goes when its last reference does, but each of these is walked by one collection of either kind: under load a
microsecond each, so that those of a million stopped everything for a second (docs/log.md). A full one walks every live run, and
is wanted hardly ever."""


def run(
    policy: Policy,
    settings: Settings,
    env: Mapping[str, str],
    *,
    command: Command = worker_command,
    path: Path | None = None,
) -> None:
    """Serves until SIGINT or SIGTERM; follows the changes of the policy at `path`.

    Raises KeylessBindError, and OSError when the port is taken.
    """
    logging.basicConfig(level=settings.log_level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    host = settings.host or policy.listen.host
    port = settings.port if settings.port is not None else policy.listen.port
    check_bind(policy, host)
    gc.freeze()
    sys.setswitchinterval(_SWITCH_S)
    gc.set_threshold(*_GC_THRESHOLDS)
    uvloop.run(_serve(policy, settings, env, host, port, command, path))


async def _serve(
    policy: Policy,
    settings: Settings,
    env: Mapping[str, str],
    host: str,
    port: int,
    command: Command,
    path: Path | None,
) -> None:
    sockets = listen(host, port)
    gateway = Gateway(policy, settings, Fleet(policy, env=env, command=command))
    server = make_server(gateway, host, port)
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _stop_or_leave, stopping)
    following = _follow(gateway, path, env, settings) if path else None
    announcing = asyncio.create_task(_announce(gateway, host, port))
    serving = asyncio.create_task(server.serve(sockets))
    waiting = asyncio.create_task(stopping.wait())
    await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    announcing.cancel()
    if waiting.done():
        await gateway.drain(settings.stop_grace_s)
        server.stop()
    waiting.cancel()
    if following:
        following.cancel()
    await serving


def _follow(gateway: Gateway, path: Path, env: Mapping[str, str], settings: Settings) -> "asyncio.Task[None]":
    """Takes over what the policy's files become: looked at once a second, and at once on SIGHUP. The audit log stands beside
    the ledger."""
    audit = AuditLog(settings.ledger.with_suffix(".policy.jsonl") if settings.ledger else None)
    reloader = Reloader(path, gateway.policy, env=env, apply=gateway.apply, audit=audit)

    async def watch() -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            reloader.look(time.time())

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, lambda: reloader.reload("signal", time.time()))
    return asyncio.create_task(watch(), name="policy")


def _stop_or_leave(stopping: asyncio.Event) -> None:
    """The second signal does not wait: our workers end as their stdin closes."""
    if stopping.is_set():
        os._exit(130)
    stopping.set()


async def _announce(gateway: Gateway, host: str, port: int) -> None:
    print(f"listening on http://{host}:{port}; loading {len(gateway.fleet.clients)} workers", file=sys.stderr, flush=True)
    while missing := gateway.fleet.missing():
        await asyncio.sleep(0.1)
        for name in missing.keys() - gateway.fleet.missing().keys():
            print(f"{name}: up", file=sys.stderr, flush=True)
    print(f"ready on http://{host}:{port}", file=sys.stderr, flush=True)
