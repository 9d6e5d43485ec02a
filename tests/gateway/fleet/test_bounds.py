import asyncio
import math
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from backends import wire
from gateway.fleet import bounds
from gateway.ledger.rows import RequestRow
from gateway.metering.cost import DeviceTime
from gateway.metering.device_time import REPORT_DELAY_S, WorkerTime
from tests.fake_upstream import chunks, stream
from tests.fake_worker import FakeWorker
from tests.gateway.fleet.test_upstream import served as with_upstream
from tests.served import Served, ask, fake, serve, until

SENT = bounds.Sent(prompt_tokens=7, max_tokens=5, at=100.0, stop=("END",))
NOT_NUMBERS = {"request", "reason"}


def _is_number(kind: Any) -> bool:
    return kind in (int, float) or any(map(_is_number, get_args(kind)))


@pytest.mark.parametrize("kind", [*get_args(wire.Up), wire.Piece, wire.TokenLogprob])
def test_every_number_of_every_message_has_a_range(kind: type[msgspec.Struct]) -> None:
    numbers = {field.name for field in msgspec.structs.fields(kind) if field.type is not bool and _is_number(field.type)}
    assert numbers - NOT_NUMBERS == set(bounds.RANGES.get(kind, {}))


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"page_size": 0}, "Hello.page_size"),
        ({"page_size": -16}, "Hello.page_size"),
        ({"max_context": -1}, "Hello.max_context"),
        ({"max_context": 2**63}, "Hello.max_context"),
        ({"num_pages": 0}, "Hello.num_pages"),
        ({"max_sequences": 0}, "Hello.max_sequences"),
        ({"eos_tokens": (-1,)}, "Hello.eos_tokens"),
        ({"device": "c" * 1000}, "Hello.device"),
        ({"kernels": {"step": "\x1b[31m"}}, "Hello.kernels.step"),
        ({"kernels": {str(n): "" for n in range(1000)}}, "Hello.kernels"),
    ],
)
async def test_hello_out_of_range_refuses_the_link_and_names_the_field(
    tmp_path: Path, wrong: dict[str, Any], field: str
) -> None:
    workers = {"nano-0": fake("nano")}
    async with serve(tmp_path, workers=workers) as one:
        client = one.gateway.fleet.clients["nano-0"]
        await workers["nano-0"].stop()
        workers["nano-0"].hello = msgspec.structs.replace(workers["nano-0"].hello, **wrong)
        await workers["nano-0"].start(f"unix://{tmp_path}/nano-0.sock")
        await until(lambda: field in client.problem)
        assert not client.healthy
        async with one.http.get(f"{one.url}/readyz") as answer:
            assert answer.status == 503 and field in await answer.text()
        assert one.gateway.fleet.excess["nano-0", field] >= 1
        assert (await one.chat())[0] == 503


LOAD = wire.Load(
    running=0, waiting=0, free_pages=8, cached_pages=0, num_pages=8, credit_sequences=4, credit_tokens=64,
    busy_s=0.0, idle_s=1.0, attributed_s=0.0, step_cost=(1e-3, 1e-6, 0.0, 0.0),
)  # fmt: skip
HELLO = wire.Hello(
    protocol=wire.PROTOCOL, model="m", fingerprint="f", device="cpu", max_context=128, page_size=16, num_pages=8,
    max_sequences=4, eos_tokens=(2,), kernels={},
)  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("credit_sequences", -5),
        ("credit_sequences", 5),
        ("credit_tokens", -1),
        ("running", -1),
        ("waiting", 2**63),
        ("free_pages", 9),
        ("num_pages", 0),
        ("busy_s", math.nan),
        ("idle_s", math.inf),
        ("attributed_s", -1.0),
        ("step_cost", (math.nan, 0.0, 0.0, 0.0)),
        ("reload_s_per_token", -math.inf),
    ],
)
def test_load_out_of_range_names_the_field(field: str, value: Any) -> None:
    bounds.check_load(LOAD, HELLO)
    with pytest.raises(bounds.OutOfRange, match=rf"^Load\.{field} is .*out of range"):
        bounds.check_load(msgspec.structs.replace(LOAD, **{field: value}), HELLO)


@pytest.mark.parametrize("field", [name for name in bounds.RANGES[wire.Finished] if name.startswith("num_")])
@pytest.mark.parametrize("value", [2**32, 2**63, 2**64 - 1])
def test_counts_beyond_the_request_are_cut_and_named(field: str, value: int) -> None:
    finished = wire.Finished(request=1, reason="stop", **{field: value})  # type: ignore[arg-type]
    bounded, cut = bounds.cut_finished(finished, SENT, now=101.0, max_sequences=4)
    assert cut == (field,)
    assert getattr(bounded, field) <= {"num_steps": 1.25e6}.get(field, SENT.prompt_tokens)
    assert bounded.num_cached_tokens <= max(bounded.num_prompt_tokens, 0)


@pytest.mark.parametrize("field", ["queue_s", "prefill_s", "decode_s", "device_s", "prefill_device_s"])
def test_times_beyond_the_wall_time_are_cut_and_named(field: str) -> None:
    finished = wire.Finished(request=1, reason="stop", **{field: 9e8})  # type: ignore[arg-type]
    bounded, cut = bounds.cut_finished(finished, SENT, now=101.0, max_sequences=4)
    assert cut == (field,)
    assert getattr(bounded, field) <= 1.0 + bounds.WALL_TOLERANCE_S


def test_a_possible_report_is_not_cut() -> None:
    finished = wire.Finished(
        request=1, reason="stop", stop_text="END", num_prompt_tokens=7, num_cached_tokens=7, num_output_tokens=5,
        queue_s=0.2, prefill_s=0.3, decode_s=0.5, device_s=0.8, prefill_device_s=0.3, num_steps=6, mean_batch=3.5,
    )  # fmt: skip
    assert bounds.cut_finished(finished, SENT, now=101.0, max_sequences=4) == (finished, ())


def test_time_slightly_below_zero_is_no_charge_and_no_fault() -> None:
    finished = wire.Finished(request=1, reason="stop", device_s=-0.0005, queue_s=-0.0001)
    bounded, cut = bounds.cut_finished(finished, SENT, now=101.0, max_sequences=4)
    assert (bounded.device_s, bounded.queue_s, cut) == (0.0, 0.0, ())


def test_stop_text_that_was_not_asked_for_is_dropped() -> None:
    finished = wire.Finished(request=1, reason="stop", stop_text="<img>")
    assert bounds.cut_finished(finished, SENT, now=101.0, max_sequences=4)[0].stop_text == ""


def test_pieces_have_at_most_the_tokens_that_were_allowed() -> None:
    assert bounds.cut_piece(wire.Piece(1, "a", 9), tokens_left=2).num_tokens == 2
    with pytest.raises(bounds.OutOfRange, match=r"Piece\.num_tokens"):
        bounds.cut_piece(wire.Piece(1, "a", -1), tokens_left=2)
    with pytest.raises(bounds.OutOfRange, match=r"Piece\.text"):
        bounds.cut_piece(wire.Piece(1, "a" * 10_000, 1), tokens_left=2)
    with pytest.raises(bounds.OutOfRange, match=r"TokenLogprob\.logprob"):
        bounds.cut_piece(wire.Piece(1, "a", 1, (wire.TokenLogprob("a", math.nan),)), tokens_left=2)


def test_reported_worker_time_is_counted_up_to_the_wall_time() -> None:
    time = WorkerTime(usd_per_s=1.0)
    time.observe(DeviceTime(busy_s=0.0, idle_s=0.0, attributed_s=0.0), 10.0)
    time.observe(DeviceTime(busy_s=9e8, idle_s=0.0, attributed_s=9e8), 20.0)
    assert time.total.busy_s + time.total.idle_s <= 10.0 + REPORT_DELAY_S
    assert time.excess_s == pytest.approx(9e8, rel=1e-3)
    assert time.total.charged_usd <= time.total.busy_s


async def _answered(one: Served, worker: FakeWorker, **wrong: Any) -> tuple[int, dict[str, Any]]:
    """Return the answer to a request that the worker ends with these numbers."""
    worker.hold()
    asked = asyncio.create_task(one.chat(ask(model="small", max_tokens=3)))
    await until(lambda: worker.num_live == 1)
    (side,) = worker._links
    (number,) = side.live
    await side.send(wire.Tokens((wire.Piece(number, "hi", 1),)))
    await side.send(wire.Finished(request=number, reason="stop", **{"num_output_tokens": 1, **wrong}))
    answer = await asked
    worker._running.clear()
    side.live.clear()
    worker.release()
    return answer


async def test_report_that_was_cut_teaches_nothing(tmp_path: Path) -> None:
    worker = fake("pico")
    async with serve(tmp_path, workers={"pico-0": worker, "nano-0": fake("nano")}) as one:
        for _ in range(3):
            assert (await one.chat(ask(model="small")))[0] == 200
        predictor = one.gateway.fleet.predictors["pico-0"]
        before = predictor.rates
        assert (await _answered(one, worker, device_s=9e8, prefill_device_s=9e8, decode_s=9e8))[0] == 200
        assert predictor.rates == before and predictor.running == 0


@pytest.mark.parametrize(
    "wrong", [{"num_steps": 2**63}, {"device_s": 9e8}, {"num_prompt_tokens": 2**32}, {"num_output_tokens": 2**64 - 1}]
)
async def test_overcharge_of_a_worker_is_cut_counted_and_marked(tmp_path: Path, wrong: dict[str, Any]) -> None:
    worker = fake("pico")
    async with serve(tmp_path, workers={"pico-0": worker, "nano-0": fake("nano")}) as one:
        status, _ = await _answered(one, worker, **wrong)
        assert status == 200
        (row,) = [row for row in one.ledger.rows if isinstance(row, RequestRow)]
        (field,) = wrong
        assert row.cut == field
        price = one.gateway.fleet.usd_per_s["pico-0"]
        assert 0 <= row.usd <= (row.total_s + bounds.WALL_TOLERANCE_S + 3 * bounds.NOMINAL_STEP_S) * price
        assert row.output_tokens <= 3 and row.num_steps < 2**31
        async with one.http.get(f"{one.url}/metrics") as metrics:
            assert 'headway_out_of_bounds_reports_total{server="pico-0"} 1.0' in await metrics.text()
        assert (await one.chat(ask(model="small")))[0] == 200


@pytest.mark.parametrize(
    ("prompt", "completion"), [(-1_000_000, -1_000_000), (2**63, 3), (10, 2**63), (0, -5), (10**30, 10**30)]
)
async def test_usage_of_an_upstream_is_bounded_by_the_request(tmp_path: Path, prompt: int, completion: int) -> None:
    async with with_upstream(tmp_path) as (one, upstream):
        usage = {"prompt_tokens": prompt, "completion_tokens": completion}
        upstream.replies.append(stream(*chunks("Hi", usage=usage)))
        assert (await one.chat())[0] == 200
        (row,) = [row for row in one.ledger.rows if isinstance(row, RequestRow)]
        sent_bytes = 1_000
        assert 0 <= row.usd <= 2.0e-6 * (sent_bytes + bounds.PREAMBLE_TOKENS) + 10.0e-6 * 8
        assert row.cut
        async with one.http.get(f"{one.url}/metrics") as metrics:
            assert metrics.status == 200 and "headway_out_of_bounds_reports_total" in await metrics.text()
        for _ in range(3):
            assert (await one.chat())[0] == 200


async def test_estimate_of_tokens_takes_only_possible_counts(tmp_path: Path) -> None:
    async with with_upstream(tmp_path) as (one, upstream):
        counts = one.gateway.fleet.upstreams["vendor"].counts
        before = counts.count(1_000)
        upstream.replies.append(stream(*chunks("Hi", usage={"prompt_tokens": 2**63, "completion_tokens": 1})))
        assert (await one.chat())[0] == 200
        assert counts.count(1_000) == before
        for _ in range(100):
            counts.learn(10, 10_000)
        assert counts.count(1_000) <= 4_000
