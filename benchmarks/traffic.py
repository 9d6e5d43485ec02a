"""Mixed traffic for a live gateway: single questions, agent runs of several turns, and long batch work, lengths as in a trace.

Every answer has a given length (`ignore_eos`), so that the same item is the same work each time. A number at the start of each
prompt keeps prompts from sharing pages.
"""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import aiohttp

from backends.zoo.vocabulary import sentence
from gateway.loadtest.arrivals import Planned, read_trace
from gateway.loadtest.client import Response, chat

Kind = Literal["interactive", "agent", "batch"]
KINDS: tuple[Kind, ...] = ("interactive", "agent", "batch")
_SHARES = {"interactive": 0.7, "agent": 0.1, "batch": 0.2}
"""Shares of arrivals; a run is one arrival and several requests."""
TRACE = "azure2023_conv.csv.gz"
TURNS, PAUSE_S = 4, 0.3
CALLERS = 32
_SHORTER = {"interactive": 4, "agent": 4, "batch": 2}
"""Divisors of the trace's lengths, which are for models with longer contexts than ours."""
_MAX_PROMPT, _MAX_OUTPUT = 1200, 96
_TOKENS_A_SENTENCE = 10.5


class Item(NamedTuple):
    """One arrival: a text for each turn, and the length of its answers."""

    kind: Kind
    texts: tuple[str, ...]
    output_tokens: int
    pause_s: float = 0.0


class Played(NamedTuple):
    """One item and the results of its turns; fewer than it has if one failed. `ended_at` is on `perf_counter`."""

    item: int
    seen: tuple[Response, ...]
    ended_at: tuple[float, ...]


def trace_of(data: Path) -> list[Planned]:
    """Read the trace. Raises OSError if the data is missing."""
    return read_trace(data / "traces" / TRACE)


def pool(trace: Sequence[Planned], size: int, seed: int) -> list[Item]:
    """Return `size` items, each class in its share."""
    rng = random.Random(seed)
    kinds = [kind for kind in KINDS for _ in range(max(1, round(_SHARES[kind] * size)))]
    rng.shuffle(kinds)
    return [_item(kind, trace[rng.randrange(len(trace))], rng) for kind in kinds]


def _item(kind: Kind, like: Planned, rng: random.Random) -> Item:
    prompt = min(_MAX_PROMPT, max(32, like.prompt_tokens // _SHORTER[kind]))
    output = min(_MAX_OUTPUT, max(4, like.output_tokens // _SHORTER[kind]))
    if kind != "agent":
        return Item(kind, (_text(rng, prompt),), output)
    texts = (_text(rng, prompt), *(_text(rng, rng.randint(20, 80)) for _ in range(TURNS - 1)))
    return Item(kind, texts, max(4, output // 2), PAUSE_S)


def _text(rng: random.Random, tokens: int) -> str:
    return " ".join(sentence(rng) for _ in range(max(1, round(tokens / _TOKENS_A_SENTENCE)))) + " What comes next?"


async def play(
    http: aiohttp.ClientSession,
    url: str,
    item: Item,
    number: int,
    *,
    index: int,
    name: str,
    due: float | None = None,
    with_slo: bool = True,
    pauses: bool = True,
    model: str = "auto",
    headers: Mapping[str, str] | None = None,
) -> Played:
    """Send one item. `name` and `number` make its prompts and its run unique; `index` is copied to the result.

    Without `with_slo` no class is requested. A run ends with its last turn, or with the first that fails.
    """
    messages: list[dict[str, Any]] = [{"role": "system", "content": f"Case {name} {number}."}]
    request_headers = {**(headers or {}), **({"x-headway-slo": item.kind} if with_slo else {})}
    if item.kind == "agent":
        request_headers.setdefault("x-headway-run-id", f"{name}-{number}")
    seen: list[Response] = []
    ended_at: list[float] = []
    for turn, text in enumerate(item.texts):
        if turn and pauses:
            await asyncio.sleep(item.pause_s)
        messages.append({"role": "user", "content": text})
        if item.kind == "agent" and turn == len(item.texts) - 1:
            request_headers["x-headway-run-final"] = "true"
        body = {"model": model, "messages": messages, "max_tokens": item.output_tokens, "temperature": 0, "ignore_eos": True}
        response = await chat(
            http, f"{url}/v1/chat/completions", body, request_headers, due=time.perf_counter() if turn or due is None else due
        )
        seen.append(response)
        ended_at.append(time.perf_counter())
        if not response.ok:
            break
        messages.append({"role": "assistant", "content": response.text})
    return Played(index, tuple(seen), tuple(ended_at))


async def capacity(
    http: aiohttp.ClientSession,
    url: str,
    items: Sequence[Item],
    seconds: float,
    headers: Mapping[str, str] | None = None,
    *,
    with_slo: bool = False,
) -> float:
    """Return items a second that CALLERS closed-loop clients complete, over this time or until each has had one.

    The first fifth of the time is not counted, while the batches fill.
    """
    began = time.perf_counter()
    counts_from, until = began + 0.2 * seconds, began + seconds
    done: list[float] = []

    async def ask_on(caller: int) -> None:
        rng, number = random.Random(caller), 0
        while time.perf_counter() < until or number == 0:
            index = rng.randrange(len(items))
            await play(
                http,
                url,
                items[index],
                number,
                index=index,
                name=f"c{caller}",
                with_slo=with_slo,
                pauses=False,
                headers=headers,
            )
            number += 1
            done.append(time.perf_counter())

    await asyncio.gather(*map(ask_on, range(CALLERS)))
    ended = max(until, sorted(done)[CALLERS // 2])
    return sum(counts_from <= at <= ended for at in done) / (ended - counts_from)
