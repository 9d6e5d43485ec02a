"""A gateway on a free loopback port in front of fake workers, all in this event loop; what the surface tests talk to."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from openai import AsyncOpenAI

from gateway.app import Gateway, build_app
from gateway.fleet.fleet import Fleet
from gateway.fleet.supervisor import Command, worker_command
from gateway.http.server import make_server
from gateway.ledger.ledger import MemoryLedger, SqliteLedger
from gateway.policy.load import load_policy
from gateway.settings import Settings
from gateway.telemetry.tracing import SpanWriter
from tests.builders import PICO, policy_text
from tests.fake_worker import FakeWorker, assets_of


@dataclass(slots=True)
class Served:
    url: str
    gateway: Gateway
    ledger: MemoryLedger
    http: aiohttp.ClientSession
    workers: dict[str, FakeWorker] = field(default_factory=dict)

    def client(self, key: str = "none", **options: Any) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **options)

    async def chat(self, body: dict[str, Any] | None = None, **changes: Any) -> tuple[int, dict[str, Any]]:
        async with self.http.post(f"{self.url}/v1/chat/completions", json=(body or ask()) | changes) as answer:
            return answer.status, await answer.json()


def ask(text: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": "auto", "max_tokens": 8, "messages": [{"role": "user", "content": text}], **more}


async def until(holds: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Waits for what other tasks bring about."""
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110  the condition is anybody's
            await asyncio.sleep(0.005)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def fake(model: str = "fake", **options: Any) -> FakeWorker:
    return FakeWorker(assets_of(PICO), model=model, **options)


@asynccontextmanager
async def serve(
    folder: Path,
    *,
    workers: dict[str, FakeWorker] | None = None,
    local: dict[str, str] | None = None,
    route: str = "",
    first_routes: str = "",
    more: str = "",
    command: Command = worker_command,
    env: dict[str, str] | None = None,
    spans: SpanWriter | None = None,
    wait_for_local: bool = True,
    ledger: SqliteLedger | None = None,
    settings: Settings | None = None,
) -> AsyncIterator[Served]:
    """`workers` are fakes reached by URL, called `MODEL-N`; `local` are started by the gateway, as `NAME: MODEL`.

    `route`, `first_routes` and `more` are those of `policy_text`. The gateway closes the `ledger` that it is given.
    """
    workers = {"pico-0": fake("pico"), "nano-0": fake("nano")} if workers is None and local is None else workers or {}
    lines = [f"  {name}: {{model: {model}, device: cpu, threads: 1}}" for name, model in (local or {}).items()]
    async with AsyncExitStack() as stack:
        for name, worker in workers.items():
            listen = f"unix://{folder}/{name}.sock"
            await worker.start(listen)
            stack.push_async_callback(worker.stop)
            lines.append(f"  {name}: {{model: {name.split('-')[0]}, device: cpu, url: '{listen}'}}")
        file = folder / "policy.yaml"
        file.write_text(policy_text("\n".join(lines) or "  {}", route=route, first_routes=first_routes, more=more))
        policy = load_policy(file, {})
        memory = MemoryLedger()
        fleet = Fleet(policy, env=env or {}, command=command, progress=lambda line: None)
        gateway = Gateway(policy, settings or Settings(), fleet, ledger=ledger or memory, spans=spans)
        port = free_port()
        server = make_server(build_app(gateway), "127.0.0.1", port)
        serving = asyncio.create_task(server.serve())
        http = await stack.enter_async_context(aiohttp.ClientSession())
        try:
            names = [*workers, *(local or {} if wait_for_local else {})]
            await until(lambda: serving.done() or all(fleet.clients[name].healthy for name in names), 100)
            await until(lambda: _listens(port))
            yield Served(f"http://127.0.0.1:{port}", gateway, memory, http, workers)
        finally:
            server.stop()
            await serving


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
