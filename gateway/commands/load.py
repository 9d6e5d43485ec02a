"""`headway load URL`: sends requests of a trace or at a rate to any OpenAI chat endpoint, and reports the results."""

import asyncio
import json
import random
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import uvloop

from gateway.commands.format_table import columns
from gateway.loadtest.arrivals import Planned, TraceError, read_trace, scaled, steady, until
from gateway.loadtest.client import Response, chat, open_loop, open_session
from gateway.loadtest.report import LatencySlo, LoadReport, Percentiles, load_report

_WORDS = ("apple", "river", "stone", "green", "seven", "house", "light", "paper", "north", "table", "water", "music")
_PROBES = (8, 264)
"""Words of the two probe prompts. Their usage shows how many tokens the endpoint's tokenizer makes of a word."""
_GUESS = (1.3, 8.0)
_TELL_EVERY_S = 1.0


class LoadError(Exception):
    """The arguments are invalid or the endpoint does not respond; the message has the reason."""


def load(arguments: Namespace, env: Mapping[str, str]) -> int:
    try:
        report = uvloop.run(_load(arguments, env))
    except (LoadError, TraceError, OSError) as error:
        print(f"headway: {error}", file=sys.stderr)
        return 1
    print(figures_text(report))
    if report.sender_was_late:
        print(
            f"\nthe sender itself was late: {report.sender_lag_ms.p99:,.0f} ms at the 99th percentile. These figures include"
            " the sender's delay: lower the rate, or send from another machine",
            file=sys.stderr,
        )
    if arguments.json:
        settings = {name: value for name, value in vars(arguments).items() if name not in ("run", "json")}
        body = {"settings": settings, "figures": msgspec.to_builtins(report)}
        Path(arguments.json).write_text(json.dumps(body, indent=1) + "\n")
    return 0


def planned_for(arguments: Namespace) -> list[Planned]:
    """Return the whole schedule. Raises LoadError, TraceError or OSError."""
    if arguments.trace:
        trace = read_trace(Path(arguments.trace))
        if arguments.rate is None:
            return until(trace, arguments.duration)
        return scaled(trace, arguments.rate, arguments.duration)
    if arguments.rate is None:
        raise LoadError("no rate: set --rate, or --trace with a file that has its own")
    lengths = (arguments.prompt_tokens, arguments.output_tokens)
    rng = random.Random(arguments.seed)
    plan = list(steady(arguments.rate, arguments.duration, lengths, arrivals=arguments.arrivals, rng=rng))
    if not plan:
        raise LoadError(f"{arguments.rate:g} requests a second for {arguments.duration:g} s are none: raise either")
    return plan


def endpoint(url: str) -> str:
    """Return the address of the chat endpoint. `url` is a base URL with or without /v1, or the whole address."""
    url = url.rstrip("/")
    if url.endswith("/chat/completions"):
        return url
    return f"{url}/chat/completions" if url.endswith("/v1") else f"{url}/v1/chat/completions"


async def _load(arguments: Namespace, env: Mapping[str, str]) -> LoadReport:
    plan = planned_for(arguments)
    longest = arguments.max_prompt_tokens
    plan = [planned._replace(prompt_tokens=min(planned.prompt_tokens, longest)) for planned in plan] if longest else plan
    key = env.get("HEADWAY_API_KEY") or env.get("OPENAI_API_KEY") or ""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with open_session(arguments.timeout) as http:
        sender = _Sender(http, endpoint(arguments.url), headers, arguments, plan)
        await sender.measure_words()
        telling = asyncio.create_task(sender.tell())
        try:
            seen = await open_loop([planned.at_s for planned in plan], sender.send)
        finally:
            telling.cancel()
    promise = LatencySlo(_seconds(arguments.slo_ttft_ms), _seconds(arguments.slo_tpot_ms))
    return load_report(seen, [promise.is_met(planned) for planned in seen], arguments.duration)


class _Sender:
    def __init__(
        self,
        http: aiohttp.ClientSession,
        url: str,
        headers: Mapping[str, str],
        arguments: Namespace,
        plan: Sequence[Planned],
    ) -> None:
        self._http, self._url, self._headers, self._plan = http, url, headers, plan
        self._model, self._seed = arguments.model, arguments.seed
        self._tokens_a_word, self._tokens_around = _GUESS
        self._sent = self._ok = self._failed = 0
        self._began = time.perf_counter()

    async def measure_words(self) -> None:
        """Send two short requests, which also check the endpoint. Raises LoadError."""
        report = []
        for words in _PROBES:
            seen = await chat(self._http, self._url, self._body(_words(random.Random(words), words), 1), self._headers)
            if not seen.ok:
                raise LoadError(f"{self._url} did not answer a probe request: {seen.error} (status {seen.status})")
            report.append(seen.prompt_tokens)
        if report[1] > report[0]:  # an endpoint that reports no usage gives 0 twice
            self._tokens_a_word = (report[1] - report[0]) / (_PROBES[1] - _PROBES[0])
            self._tokens_around = report[0] - self._tokens_a_word * _PROBES[0]

    async def send(self, number: int, due: float) -> Response:
        planned = self._plan[number]
        words = max(1, round((planned.prompt_tokens - self._tokens_around) / self._tokens_a_word))
        rng = random.Random(f"{self._seed} {number}")
        self._sent += 1
        seen = await chat(self._http, self._url, self._body(_words(rng, words), planned.output_tokens), self._headers, due=due)
        self._ok, self._failed = self._ok + seen.ok, self._failed + (not seen.ok)
        return seen

    def _body(self, text: str, max_tokens: int) -> dict[str, Any]:
        messages = [{"role": "user", "content": text}]
        return {"model": self._model, "messages": messages, "max_tokens": max_tokens, "temperature": 0}

    async def tell(self) -> None:
        self._began = time.perf_counter()
        while True:
            await asyncio.sleep(_TELL_EVERY_S)
            at = time.perf_counter() - self._began
            open_ = self._sent - self._ok - self._failed
            print(
                f"{at:5.0f} s: {self._sent:,} of {len(self._plan):,} sent, {open_:,} open, {self._ok:,} answered,"
                f" {self._failed:,} not",
                file=sys.stderr,
                flush=True,
            )


def _words(rng: random.Random, count: int) -> str:
    """Return random text. No two requests share a prefix, so that no prompt is cached."""
    return " ".join(rng.choices(_WORDS, k=count))


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def figures_text(report: LoadReport) -> str:
    """Return the report as tables."""
    rows: list[Sequence[str]] = [("ms", "p50", "p90", "p99")]
    rows += [
        (name, *_cells(percentiles))
        for name, percentiles in (
            ("TTFT", report.ttft_ms),
            ("TPOT", report.tpot_ms),
            ("E2E", report.e2e_ms),
            ("sent late", report.sender_lag_ms),
        )
    ]
    admitted = "-" if report.admitted_attainment is None else f"{report.admitted_attainment:.2%}"
    lines = [
        columns(rows, right=frozenset((1, 2, 3))),
        "",
        f"{report.requests:,} requests in {report.duration_s:g} s ({report.sent_per_s:.2f}/s), {report.ok:,} answered"
        f" ({report.answered_per_s:.2f}/s)",
        f"throughput {report.prompt_tokens_per_s:,.0f} prompt and {report.output_tokens_per_s:,.0f} output tokens/s",
        f"goodput {report.goodput:.2f} requests/s; SLO met: {report.attainment:.2%} of all, {admitted} of those answered",
    ]
    if report.refused:
        rows = [("status", "error", "requests", "p50 ms", "p99 ms")]
        rows += [
            (str(group.status or "-"), group.error, f"{group.requests:,}", f"{group.p50_ms:,.1f}", f"{group.p99_ms:,.1f}")
            for group in report.refused
        ]
        lines += ["", columns(rows, right=frozenset((0, 2, 3, 4)))]
    return "\n".join(lines)


def _cells(percentiles: Percentiles) -> tuple[str, ...]:
    return tuple("-" if value is None else f"{value:,.1f}" for value in (percentiles.p50, percentiles.p90, percentiles.p99))
