"""Frames of the link, both ways, with the fields of every message at their extremes."""

import asyncio
import random
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import aiohttp
import msgspec

from backends import wire
from backends.engine.engine import Engine
from backends.worker.address import parse_address
from backends.worker.worker import Worker
from gateway.ledger.ledger import SqliteLedger
from tests.backends.fakes import FakeRunner, LetterDecoder, Ticks, hello, limits
from tests.fake_worker import FakeWorker
from tests.fuzz.oracles import KEYS, charges_are_bounded, nothing_ended, other_is_served
from tests.fuzz.rounds import Rounds
from tests.fuzz.values import changed_bytes, extreme, one_changed
from tests.served import Served, ask, fake, free_port, serve, until

UP = [kind for kind in get_args(wire.Up) if kind is not wire.Hello]
TIMEOUT_S = 60.0


async def test_frames_of_a_worker_harm_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    rogue, rounds = fake("pico"), Rounds("frames from a worker")
    workers = {"pico-0": rogue, "nano-0": fake("nano")}
    first = rogue.hello
    async with serve(tmp_path, workers=workers, more=KEYS, ledger=SqliteLedger(path)) as one:
        client = one.gateway.fleet.clients["pico-0"]
        for rng in rounds:
            await until(lambda: client.healthy)
            kind = rng.choice(("message", "message", "message", "hello", "bytes"))
            rounds.counts[kind] += 1
            if kind == "hello":
                changed = one_changed(rng, first)
                assert isinstance(changed, wire.Hello)
                rogue.hello = changed
                rogue.drop_links()
                await asyncio.sleep(0.01)
                await other_is_served(one, model="large", max_tokens=2)
                rogue.hello = first
                rogue.drop_links()
                continue
            rogue.hold()
            asked = asyncio.create_task(_asked(one))
            await until(lambda asked=asked: rogue.num_live > 0 or asked.done())  # type: ignore[misc]
            await _send(rogue, _frames(rng, rogue, as_bytes=kind == "bytes"))
            await asyncio.wait_for(other_is_served(one, model="large", max_tokens=2), TIMEOUT_S)
            rogue.drop_links()
            rogue.release()
            rounds.counts[f"status {await asyncio.wait_for(asked, TIMEOUT_S)}"] += 1
        await until(lambda: client.healthy)
        await nothing_ended(one)
        await charges_are_bounded(one, path)


async def _asked(one: Served) -> int:
    headers = {"authorization": "Bearer fuzzed"}
    async with one.http.post(
        f"{one.url}/v1/chat/completions", json=ask(model="small", max_tokens=3), headers=headers
    ) as answer:
        assert "internal error in the gateway" not in await answer.text()
        return answer.status


def _frames(rng: random.Random, rogue: FakeWorker, *, as_bytes: bool) -> list[bytes]:
    live = [number for link in rogue._links for number in link.live]
    number = live[0] if live else 1
    end = wire.Finished(request=number, reason="stop", num_prompt_tokens=3, num_output_tokens=2)
    frames = []
    for _ in range(rng.randint(1, 4)):
        message: Any = rng.choice((rogue._load(), wire.Cache(sequence=1), extreme(rng, rng.choice(UP))))
        if rng.random() < 0.6:
            message = rng.choice((end, wire.Tokens((wire.Piece(number, "hi", 1),))))
        if isinstance(message, wire.Tokens):
            pieces = [msgspec.structs.replace(_piece(rng, piece), request=number) for piece in message.pieces]
            message = wire.Tokens(tuple(pieces))
        elif rng.random() < 0.7:
            message = one_changed(rng, message)
            if isinstance(message, wire.Finished) and rng.random() < 0.8:
                message = msgspec.structs.replace(message, request=number)
        with suppress(OverflowError):  # an integer that msgpack does not have
            frames.append(changed_bytes(rng, wire.encode(message)) if as_bytes else wire.encode(message))
    return frames


def _piece(rng: random.Random, piece: wire.Piece) -> wire.Piece:
    changed = one_changed(rng, piece)
    assert isinstance(changed, wire.Piece)
    return changed


async def _send(rogue: FakeWorker, frames: list[bytes]) -> None:
    for link in tuple(rogue._links):
        for frame in frames:
            with suppress(ConnectionError):  # the gateway may be closing it for the frame before
                if not link.socket.closed:
                    await link.socket.send_bytes(frame)


async def test_frames_of_a_gateway_harm_no_worker() -> None:
    of, rounds, port = limits(), Rounds("frames from a gateway"), free_port()
    engine = Engine(FakeRunner(of), LetterDecoder(), of, clock_ns=Ticks(), rng=random.Random(0))
    worker = Worker(engine, hello(of), {}, token="t")
    await worker.open(parse_address(f"tcp://127.0.0.1:{port}", token="t"))
    try:
        async with aiohttp.ClientSession(headers={"authorization": "Bearer t"}) as session:
            for rng in rounds:
                await _attack(rng, session, port, rounds)
                await asyncio.wait_for(_good(session, port), TIMEOUT_S)
    finally:
        await worker.close()


async def _attack(rng: random.Random, session: aiohttp.ClientSession, port: int, rounds: Rounds) -> None:
    good = wire.Submit(request=1, prompt=b"\1\0\0\0" * 3, sampling=wire.Sampling(max_tokens=3))
    async with session.ws_connect(f"ws://127.0.0.1:{port}/link", max_msg_size=0) as socket:
        for _ in range(rng.randint(1, 4)):
            message: Any = rng.choice((good, one_changed(rng, good), extreme(rng, rng.choice(get_args(wire.Down)))))
            if isinstance(message, wire.Submit) and rng.random() < 0.5:
                message = msgspec.structs.replace(good, sampling=one_changed(rng, good.sampling))
            try:
                frame = wire.encode(message)
            except OverflowError:
                continue
            if rng.random() < 0.2:
                frame = changed_bytes(rng, frame)
            rounds.counts[type(message).__name__] += 1
            with suppress(ConnectionError, aiohttp.ClientError):
                await socket.send_bytes(frame)


async def _good(session: aiohttp.ClientSession, port: int) -> None:
    """A sound submit on another link gets exactly one end."""
    async with session.ws_connect(f"ws://127.0.0.1:{port}/link", max_msg_size=0) as socket:
        submit = wire.Submit(request=7, prompt=b"\1\0\0\0" * 3, sampling=wire.Sampling(max_tokens=2))
        await socket.send_bytes(wire.encode(submit))
        while True:
            for message in wire.decode_up(await socket.receive_bytes()):
                if isinstance(message, wire.Finished):
                    assert message.request == 7 and message.reason in ("length", "stop"), message
                    return
