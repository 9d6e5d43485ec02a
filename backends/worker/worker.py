"""One worker in this process: an engine on its thread behind a server on the running event loop. Its opener closes it."""

import asyncio

from aiohttp import web

from backends.engine.engine import Engine
from backends.structured_output.grammar import Grammars
from backends.wire import Hello
from backends.worker.address import Address, open_site
from backends.worker.engine_thread import EngineThread
from backends.worker.gpu import open_gpu
from backends.worker.link_handler import Outgoing
from backends.worker.metrics import registry_for
from backends.worker.server import Server


class Worker:
    """`files` are the assets sent to gateways. `failure` is set if a step raised: the worker can then serve no more."""

    def __init__(
        self,
        engine: Engine,
        hello: Hello,
        files: dict[str, bytes],
        *,
        token: str | None = None,
        grammars: Grammars | None = None,
    ) -> None:
        self.engine = engine
        self.failure: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self._engine_thread = EngineThread(
            engine, send=self._send, failed=self._failed, grammars=grammars, yields=not hello.gpu
        )
        gpu = open_gpu(hello.gpu) if hello.gpu else None
        metrics = registry_for(engine, hello.model, gpu, step=hello.kernels.get("step", ""))
        self._server = Server(hello, files, metrics, post=self._engine_thread.post, token=token)
        self._runner = web.AppRunner(self._server.app(), access_log=None, shutdown_timeout=0.2)

    async def open(self, address: Address) -> str:
        """Start the worker. Return its listen address."""
        await self._runner.setup()
        where = await open_site(self._runner, address)
        self._engine_thread.start()
        return where

    async def close(self) -> None:
        await self._loop.run_in_executor(None, self._engine_thread.stop)
        await self._runner.cleanup()

    def _send(self, outgoing: list[Outgoing]) -> None:
        self._loop.call_soon_threadsafe(self._server.deliver, outgoing)

    def _failed(self, error: BaseException) -> None:
        self._loop.call_soon_threadsafe(self._fail, error)

    def _fail(self, error: BaseException) -> None:
        self._server.fail(error)
        self.failure.set_result(error)
