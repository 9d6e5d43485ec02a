"""Bodies, headers and link frames that nobody sends on purpose: an answer in the dialect's shape, never a 500, never a hang."""

import asyncio
import http.client
import json
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends import wire
from tests.contract.running import gateway_in_a_thread
from tests.served import Served, ask, fake, serve, until

TIMEOUT_S = 60.0
VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": ask(
        tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string"}}},
        stop=["x"],
        logit_bias={"5": 1},
        stream_options={"include_usage": True},
        service_tier="auto",
        n=2,
        stream=True,
    ),
    "/v1/responses": {"model": "auto", "input": [{"role": "user", "content": "hi"}], "max_output_tokens": 4, "tools": []},
    "/v1/messages": ask(system="s", stop_sequences=["x"], thinking={"type": "disabled"}),
    "/v1/messages/count_tokens": {"model": "auto", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
    "/v1/completions": {"model": "auto", "prompt": "hi", "max_tokens": 4, "logprobs": 2},
    "/v1/headway/explain": ask(),
    "/v1/headway/outcomes": {"decision": "dec-1", "right": True, "messages": [{"role": "user", "content": "hi"}]},
}
HEADERS = [
    "x-headway-slo",
    "x-llm-d-slo-ttft-ms",
    "x-headway-run-id",
    "x-headway-chain-id",
    "x-headway-run-final",
    "traceparent",
    "tracestate",
    "authorization",
    "x-api-key",
    "session-id",
    "x-claude-code-session-id",
    "helicone-session-path",
    "accept",
    "content-type",
]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def bodies(draw: st.DrawFn, valid: dict[str, Any]) -> bytes:
    """A valid body with one of its values replaced at any depth, with bytes changed, or cut off."""
    body = json.loads(json.dumps(valid))
    place: Any = body
    for _ in range(draw(st.integers(1, 5))):
        keys = list(place) if isinstance(place, dict) else range(len(place)) if isinstance(place, list) else ()
        if not keys:
            break
        key = draw(st.sampled_from(list(keys)))
        if draw(st.booleans()) or not isinstance(place[key], dict | list):
            place[key] = draw(JSON)
            break
        place = place[key]
    data = bytearray(json.dumps(body, ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass"))
    match draw(st.sampled_from(["whole", "whole", "changed", "cut"])):
        case "changed":
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
        case "cut":
            del data[draw(st.integers(0, len(data))) :]
    return bytes(data)


header_values = st.binary(max_size=40).map(lambda value: bytes(b for b in value if b >= 32 and b != 127).strip())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with gateway_in_a_thread(tmp_path_factory.mktemp("fuzz")) as served:
        yield served


@pytest.mark.parametrize("path", VALID)
def test_a_damaged_body_gets_an_answer_in_shape(path: str, served: Served) -> None:
    @settings(max_examples=25, database=None)
    @given(body=bodies(VALID[path]), headers=st.dictionaries(st.sampled_from(HEADERS), header_values, max_size=3))
    def asked(body: bytes, headers: dict[str, bytes]) -> None:
        connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=TIMEOUT_S)
        try:
            connection.request("POST", path, body, headers)  # type: ignore[arg-type]
            answer = connection.getresponse()
            status, data = answer.status, answer.read()
        finally:
            connection.close()
        assert status < 500, (status, data)
        if status >= 400:
            error = json.loads(data)["error"]
            assert error["message"] and error["type"] and "Traceback" not in error["message"]
        elif answer.headers["content-type"] == "application/json":
            json.loads(data)

    asked()


FRAMES = [
    wire.Submit(request=1, prompt=b"\1\0\0\0", sampling=wire.Sampling(max_tokens=5, stop=("x",))),
    wire.Abort(1),
    wire.Finished(request=1, reason="stop", num_prompt_tokens=3),
    wire.Tokens((wire.Piece(1, "text", 1),)),
    wire.Cache(sequence=1, stored=b"0123456789abcdef"),
]


@settings(max_examples=200, database=None)
@given(data=st.data())
def test_frame_that_is_no_message_is_refused(data: st.DataObject) -> None:
    frame = bytearray(wire.encode(data.draw(st.sampled_from(FRAMES))))
    for _ in range(data.draw(st.integers(0, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    sent = data.draw(st.sampled_from([bytes(frame), bytes(frame[: len(frame) // 2])]) | st.binary(max_size=60))
    for decode in (wire.decode_up, wire.decode_down):
        try:
            decode(sent)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            assert str(error)


_numbers = st.sampled_from([0, -1, 1, 7, 2**40, -(2**40)])
_seconds = st.sampled_from([0.0, -1.0, 1e300, math.nan, math.inf, 0.01])
_requests = st.integers(0, 4)
_ends: st.SearchStrategy[Any] = st.builds(
    wire.Finished,
    request=_requests,
    reason=st.sampled_from(["stop", "length", "abort", "refused", "error"]),
    error=st.text(max_size=5),
    error_code=st.sampled_from(["", "too_many", "bad_grammar", "?"]),
    num_prompt_tokens=_numbers,
    num_cached_tokens=_numbers,
    num_output_tokens=_numbers,
    prefill_s=_seconds,
    decode_s=_seconds,
    device_s=_seconds,
    prefill_device_s=_seconds,
)
_pieces = st.builds(wire.Piece, _requests, st.text(max_size=5), _numbers)
_loads: st.SearchStrategy[Any] = st.builds(
    wire.Load,
    running=_numbers,
    waiting=_numbers,
    free_pages=_numbers,
    cached_pages=_numbers,
    num_pages=_numbers,
    credit_sequences=_numbers,
    credit_tokens=_numbers,
    busy_s=_seconds,
    idle_s=_seconds,
    attributed_s=_seconds,
    step_cost=st.tuples(_seconds, _seconds, _seconds, _seconds),
)
_caches: st.SearchStrategy[Any] = st.builds(
    wire.Cache, sequence=_numbers, stored=st.binary(max_size=40), removed=st.binary(max_size=40), reset=st.booleans()
)
_hostile = st.one_of(_ends, _ends, st.builds(wire.Tokens, st.tuples(_pieces, _pieces)), _loads, _caches, st.binary(max_size=40))


def frame(message: Any, live: dict[int, Any]) -> bytes:
    """An end is that of a request that runs."""
    if isinstance(message, wire.Finished) and live:
        message = msgspec.structs.replace(message, request=next(iter(live)))
    return message if isinstance(message, bytes) else wire.encode(message)


async def test_worker_with_invalid_frames_affects_no_other_and_reconnects(tmp_path: Path) -> None:
    found: list[list[Any]] = []

    @settings(max_examples=30, database=None)
    @given(st.lists(_hostile, min_size=1, max_size=4))
    def collect(frames: list[Any]) -> None:
        found.append(frames)

    collect()
    workers = {"pico-0": fake("pico"), "nano-0": fake("nano")}
    async with serve(tmp_path, workers=workers) as served:
        hostile = workers["pico-0"]
        for messages in found:
            await until(lambda: served.gateway.fleet.clients["pico-0"].healthy)
            hostile.hold()
            asked = asyncio.create_task(served.chat(ask(model="small", max_tokens=3)))
            await until(lambda asked=asked: hostile.num_live > 0 or asked.done())
            for link in tuple(hostile._links):
                for message in messages:
                    with suppress(ConnectionError):  # the gateway may be closing it for the message before
                        if not link.socket.closed:
                            await link.socket.send_bytes(frame(message, link.live))
            assert (await asyncio.wait_for(served.chat(), TIMEOUT_S))[0] == 200
            hostile.drop_links()
            hostile.release()
            status, _ = await asyncio.wait_for(asked, TIMEOUT_S)
            assert status in (200, 429, 500, 502, 503, 400)
        await until(lambda: served.gateway.fleet.clients["pico-0"].healthy)
        assert (await asyncio.wait_for(served.chat(ask(model="small")), TIMEOUT_S))[0] == 200
        async with served.http.get(f"{served.url}/metrics") as answer:
            assert answer.status == 200
        async with served.http.get(f"{served.url}/v1/headway/workers") as answer:
            json.loads(await answer.text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        predictor = served.gateway.fleet.predictors["pico-0"]
        assert all(0 <= value < 1e6 for value in (*predictor.rates, predictor.turns_s(1)))
        served.gateway.budgets.check()
