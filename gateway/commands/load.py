"""`headway load URL`: sends what a trace or a rate says to any OpenAI chat endpoint, and tells what became of it."""

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
"""Words in the two questions whose usage tells how many tokens the other side makes of a word."""
_GUESS = (1.3, 8.0)
_TELL_EVERY_S = 1.0


class LoadError(Exception):
    """Says what is wrong with what was asked for, or that nobody answers."""


def load(arguments: Namespace, env: Mapping[str, str]) -> int:
    try:
        found = uvloop.run(_load(arguments, env))
    except (LoadError, TraceError, OSError) as error:
        print(f"headway: {error}", file=sys.stderr)
        return 1
    print(figures_text(found))
    if found.sender_was_late:
        print(
            f"\nthe sender itself was late: {found.sender_lag_ms.p99:,.0f} ms at the 99th percentile. These are its figures as"
            " much as the other side's: send less, or from another machine",
            file=sys.stderr,
        )
    if arguments.json:
        settings = {name: value for name, value in vars(arguments).items() if name not in ("run", "json")}
        body = {"settings": settings, "figures": msgspec.to_builtins(found)}
        Path(arguments.json).write_text(json.dumps(body, indent=1) + "\n")
    return 0


def planned_for(arguments: Namespace) -> list[Planned]:
    """The whole schedule. Raises LoadError, TraceError or OSError."""
    if arguments.trace:
        trace = read_trace(Path(arguments.trace))
        if arguments.rate is None:
            return until(trace, arguments.duration)
        return scaled(trace, arguments.rate, arguments.duration)
    if arguments.rate is None:
        raise LoadError("how many requests a second? Say --rate, or --trace with a file that has its own")
    lengths = (arguments.prompt_tokens, arguments.output_tokens)
    rng = random.Random(arguments.seed)
    plan = list(steady(arguments.rate, arguments.duration, lengths, arrivals=arguments.arrivals, rng=rng))
    if not plan:
        raise LoadError(f"{arguments.rate:g} requests a second for {arguments.duration:g} s are none: ask for more")
    return plan


def endpoint(url: str) -> str:
    """A base URL with or without /v1, or the whole address of an endpoint."""
    url = url.rstrip("/")
    if url.endswith("/chat/completions"):
        return url
    return f"{url}/chat/completions" if url.endswith("/v1") else f"{url}/v1/chat/completions"


async def _load(arguments: Namespace, env: Mapping[str, str]) -> LoadReport:
    plan = planned_for(arguments)
    longest = arguments.max_prompt_tokens
    plan = [one._replace(prompt_tokens=min(one.prompt_tokens, longest)) for one in plan] if longest else plan
    key = env.get("HEADWAY_API_KEY") or env.get("OPENAI_API_KEY") or ""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with open_session(arguments.timeout) as http:
        sender = _Sender(http, endpoint(arguments.url), headers, arguments, plan)
        await sender.measure_words()
        telling = asyncio.create_task(sender.tell())
        try:
            seen = await open_loop([one.at_s for one in plan], sender.send)
        finally:
            telling.cancel()
    promise = LatencySlo(_seconds(arguments.slo_ttft_ms), _seconds(arguments.slo_tpot_ms))
    return load_report(seen, [promise.is_met(one) for one in seen], arguments.duration)


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
        """Two short answers, which also show that somebody is there. Raises LoadError."""
        found = []
        for words in _PROBES:
            seen = await chat(self._http, self._url, self._body(_words(random.Random(words), words), 1), self._headers)
            if not seen.ok:
                raise LoadError(f"{self._url} gave no answer to a first question: {seen.error} (status {seen.status})")
            found.append(seen.prompt_tokens)
        if found[1] > found[0]:  # an endpoint that tells no usage says 0 twice
            self._tokens_a_word = (found[1] - found[0]) / (_PROBES[1] - _PROBES[0])
            self._tokens_around = found[0] - self._tokens_a_word * _PROBES[0]

    async def send(self, number: int, due: float) -> Response:
        one = self._plan[number]
        words = max(1, round((one.prompt_tokens - self._tokens_around) / self._tokens_a_word))
        rng = random.Random(f"{self._seed} {number}")
        self._sent += 1
        seen = await chat(self._http, self._url, self._body(_words(rng, words), one.output_tokens), self._headers, due=due)
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
    """Of which no two requests share a beginning, so that nothing is found in a cache."""
    return " ".join(rng.choices(_WORDS, k=count))


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def figures_text(found: LoadReport) -> str:
    """Tables for people."""
    rows: list[Sequence[str]] = [("ms", "p50", "p90", "p99")]
    rows += [
        (name, *_cells(one))
        for name, one in (
            ("TTFT", found.ttft_ms),
            ("TPOT", found.tpot_ms),
            ("E2E", found.e2e_ms),
            ("sent late", found.sender_lag_ms),
        )
    ]
    admitted = "-" if found.admitted_attainment is None else f"{found.admitted_attainment:.2%}"
    lines = [
        columns(rows, right=frozenset((1, 2, 3))),
        "",
        f"{found.requests:,} requests in {found.duration_s:g} s ({found.sent_per_s:.2f}/s), {found.ok:,} answered"
        f" ({found.answered_per_s:.2f}/s)",
        f"throughput {found.prompt_tokens_per_s:,.0f} prompt and {found.output_tokens_per_s:,.0f} output tokens/s",
        f"goodput {found.goodput:.2f} requests/s; promises kept: {found.attainment:.2%} of all, {admitted} of those answered",
    ]
    if found.refused:
        rows = [("status", "error", "requests", "p50 ms", "p99 ms")]
        rows += [
            (str(one.status or "-"), one.error, f"{one.requests:,}", f"{one.p50_ms:,.1f}", f"{one.p99_ms:,.1f}")
            for one in found.refused
        ]
        lines += ["", columns(rows, right=frozenset((0, 2, 3, 4)))]
    return "\n".join(lines)


def _cells(one: Percentiles) -> tuple[str, ...]:
    return tuple("-" if value is None else f"{value:,.1f}" for value in (one.p50, one.p90, one.p99))
