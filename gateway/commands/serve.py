"""`headway serve`: runs the gateway and its local workers in one process with one event loop, until SIGINT or SIGTERM."""

import asyncio
import gc
import logging
import os
import signal
import sqlite3
import sys
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import uvloop

from gateway.app import Gateway, build_app
from gateway.fleet.fleet import Fleet
from gateway.fleet.supervisor import Command, worker_command
from gateway.http.auth import KeylessBindError, check_bind
from gateway.http.server import listen, make_server
from gateway.policy.load import PolicyError, load_policy
from gateway.policy.reload import AuditLog, Reloader
from gateway.policy.schema import Policy
from gateway.policy.secret_files import secrets_of
from gateway.routing.quality import ArtefactError
from gateway.runtime.private_files import UMASK
from gateway.runtime.redaction import RedactingFormatter
from gateway.settings import Settings, SettingsError, read_settings

LOOK_EVERY_S = 1.0
_SWITCH_S = 0.0005
"""Seconds for which another thread may hold the interpreter while the event loop waits for it.

On each I/O of the loop the ledger's or exporter's thread may take the interpreter. Python's default of 5 ms is the time of ten
requests.
"""
_GC_THRESHOLDS = (2_000, 2, 2_500)
"""Garbage collector thresholds: new objects per young collection, young per middle, middle per full collection.

Long-lived objects (runs, chains, pages) are in no cycle and are freed with their last reference. Yet each is visited once by a
young and a middle collection, a microsecond each under load. A million of them stopped the process for a second (docs/log.md).
A full collection visits every live run and is almost never needed.
"""


def serve(arguments: Namespace, env: Mapping[str, str]) -> int:
    try:
        path = Path(arguments.policy)
        run(load_policy(path, env), read_settings(env), env, path=path)
    except (PolicyError, SettingsError, KeylessBindError, ArtefactError, OSError, sqlite3.Error) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def run(
    policy: Policy,
    settings: Settings,
    env: Mapping[str, str],
    *,
    command: Command = worker_command,
    path: Path | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM and apply changes of the policy at `path`.

    Raises KeylessBindError, and OSError if the port is taken.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter("%(levelname)s %(name)s: %(message)s", tuple(secrets_of(policy))))
    logging.basicConfig(level=settings.log_level, handlers=[handler])
    host = settings.host or policy.listen.host
    port = settings.port if settings.port is not None else policy.listen.port
    check_bind(policy, host)
    os.umask(UMASK)
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
    server = make_server(build_app(gateway), host, port)
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
    """Apply changes of the policy's files: checked once a second, and at once on SIGHUP. The audit log is beside the ledger."""
    audit = AuditLog(settings.ledger.with_suffix(".policy.jsonl") if settings.ledger else None)
    reloader = Reloader(path, gateway.policy, env=env, apply=gateway.apply, audit=audit)

    async def watch() -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            reloader.look(time.time())

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, lambda: reloader.reload("signal", time.time()))
    return gateway.fleet.background.start("policy", watch)


def _stop_or_leave(stopping: asyncio.Event) -> None:
    """Exit at once on the second signal: local workers end when their stdin closes."""
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
