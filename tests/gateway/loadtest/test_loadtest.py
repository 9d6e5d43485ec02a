import asyncio
import gc
import json
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.loadtest.client import Response, chat, open_loop, open_session
from gateway.loadtest.report import LatencySlo, load_report
from tests.served import ask, fake, free_port, serve, until

GOOD = Response(200, 0.0, 1.1, first_s=0.1, finish="stop", prompt_tokens=50, output_tokens=11)


def test_latency_counts_from_the_planned_send_time() -> None:
    assert GOOD.tpot_s == pytest.approx(0.1)
    assert LatencySlo().is_met(GOOD) and LatencySlo(0.1, 0.11, 1.2).is_met(GOOD)
    assert not LatencySlo(ttft_s=0.09).is_met(GOOD)
    assert not LatencySlo(tpot_s=0.09).is_met(GOOD)
    assert not LatencySlo(end_s=1.0).is_met(GOOD)
    assert not LatencySlo().is_met(GOOD._replace(error="worker_lost")) and not LatencySlo().is_met(GOOD._replace(status=429))


def test_refusals_lower_attainment_but_not_admitted_attainment() -> None:
    refused = Response(429, 0.0, 0.02, error="overloaded")
    broken = GOOD._replace(error="worker_lost")
    seen = [GOOD] * 6 + [refused] * 3 + [broken]
    found = load_report(seen, [LatencySlo(0.2).is_met(one) for one in seen], duration_s=2.0)
    assert (found.requests, found.ok, found.goodput, found.attainment) == (10, 6, 3.0, 0.6)
    assert found.admitted_attainment == pytest.approx(6 / 7)
    assert [(one.status, one.error, one.requests, one.p99_ms) for one in found.refused] == [
        (429, "overloaded", 3, 20.0),
        (200, "worker_lost", 1, pytest.approx(1100.0)),
    ]
    assert found.ttft_ms.p50 == pytest.approx(100) and found.output_tokens_per_s == 33
    assert not found.sender_was_late
    assert load_report([GOOD._replace(lag_s=0.5)], [True], 1.0).sender_was_late
    assert load_report([], [], 1.0).ttft_ms.p50 is None


async def test_open_loop_sends_on_time_regardless_of_other_requests() -> None:
    now, sent = 0.0, []
    release = asyncio.Event()

    async def send(number: int, due: float) -> int:
        sent.append(due)
        if number == 2:
            release.set()
        await release.wait()  # the first two hang until the third was sent
        return number

    assert await open_loop([0.0, 0.001, 0.002], send, clock=lambda: now) == [0, 1, 2]
    assert sent == [0.0, 0.001, 0.002]


async def test_garbage_is_collected_rarely_during_a_load() -> None:
    before = gc.get_threshold()

    async def send(number: int, due: float) -> int:
        assert gc.get_threshold() > before
        if number == 1:
            raise ValueError("not sent")
        return number

    assert await open_loop([0.0], send) == [0]
    assert gc.get_threshold() == before
    with pytest.raises(ExceptionGroup):
        await open_loop([0.0, 0.0], send)
    assert gc.get_threshold() == before and gc.get_freeze_count() == 0


async def test_the_client_sees_answers_refusals_and_broken_streams(tmp_path: Path) -> None:
    worker = fake("nano", max_sequences=1, step_s=0.002)
    more = "limits: {max_queued_requests: 1}"
    async with serve(tmp_path, workers={"nano-0": worker}, more=more) as served, open_session(20) as http:
        url = f"{served.url}/v1/chat/completions"
        seen = await chat(http, url, ask("hello"))
        assert seen.ok and (seen.finish, seen.output_tokens) == ("length", 8)
        assert seen.text == (await served.chat(ask("hello")))[1]["choices"][0]["message"]["content"]
        assert seen.first_s is not None and 0 < seen.first_s <= seen.end_s and seen.prompt_tokens > 0
        worker.hold()
        waiting = [asyncio.create_task(chat(http, url, ask(f"n {n}", max_tokens=100))) for n in range(2)]
        await until(lambda: len(served.gateway.queue) == 1)
        refused = await chat(http, url, ask("more"))
        assert (refused.status, refused.error, refused.first_s) == (429, "overloaded", None)
        assert refused.retry_after_s == 1.0
        before = worker.busy_s
        worker.release()
        await until(lambda: worker.busy_s > before + 0.01)
        worker.drop_links()
        assert (200, "worker_lost") in [(one.status, one.error) for one in await asyncio.gather(*waiting)]
        nobody = await chat(http, f"http://127.0.0.1:{free_port()}/v1/chat/completions", ask())
        assert (nobody.status, nobody.ok) == (0, False) and "Connect" in nobody.error


async def test_the_command_measures_a_gateway(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    async with serve(tmp_path, workers={"nano-0": fake("nano")}) as served:
        asked = ["load", served.url, "--rate", "40", "--duration", "0.5", "--arrivals", "constant", "--json", str(file)]
        asked += ["--prompt-tokens", "40", "--output-tokens", "5", "--slo-ttft-ms", "60000", "--slo-tpot-ms", "60000"]
        assert await asyncio.to_thread(main, asked, {}) == 0
        lengths = {len(one.prompt) // 4 for one in served.workers["nano-0"].submitted[2:]}
    written = json.loads(file.read_text())
    found = written["figures"]
    assert (found["requests"], found["ok"], found["attainment"]) == (19, 19, 1.0)
    assert found["output_tokens_per_s"] == 19 * 5 / 0.5
    assert all(30 <= length <= 50 for length in lengths)
    assert written["settings"]["rate"] == 40
    out = capsys.readouterr().out
    assert "TTFT" in out and "goodput 38.00 requests/s" in out and "100.00% of all" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["http://127.0.0.1:9"], "--rate"),
        (["http://127.0.0.1:9", "--rate", "1"], "did not answer a probe request"),
        (["http://127.0.0.1:9", "--trace", "/nowhere.csv"], "nowhere.csv"),
        (["http://127.0.0.1:9", "--rate", "0.001", "--duration", "0.1"], "raise either"),
    ],
)
def test_invalid_request_file_is_an_error(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["load", *arguments], {}) == 1
    assert said in capsys.readouterr().err


def test_a_bad_number_names_its_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["load", "http://127.0.0.1:9", "--rate", "-1"], {})
    assert "--rate: '-1' is no number over 0" in capsys.readouterr().err
