"""Mixed traffic for a live gateway: single questions, agent runs of several turns, and long batch work, lengths as in a trace.

Every answer has a given length (`ignore_eos`), so that the same item is the same work each time; a number in front of each
prompt keeps one from finding another's pages.
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
"""Of what arrives; a run is one arrival and several requests."""
TRACE = "azure2023_conv.csv.gz"
TURNS, PAUSE_S = 4, 0.3
CALLERS = 32
_SHORTER = {"interactive": 4, "agent": 4, "batch": 2}
"""The trace's lengths are for models that take more than ours."""
_MAX_PROMPT, _MAX_OUTPUT = 1200, 96
_TOKENS_A_SENTENCE = 10.5


class Item(NamedTuple):
    """What arrives at once: one text for each turn, the answers as long as said."""

    kind: Kind
    texts: tuple[str, ...]
    output_tokens: int
    pause_s: float = 0.0


class Played(NamedTuple):
    """One item and what became of its turns; fewer than it has where one failed. `ended_at` is when, by `perf_counter`."""

    item: int
    seen: tuple[Response, ...]
    ended_at: tuple[float, ...]


def trace_of(data: Path) -> list[Planned]:
    """Raises OSError when the data is not there."""
    return read_trace(data / "traces" / TRACE)


def pool(trace: Sequence[Planned], size: int, seed: int) -> list[Item]:
    """So many items, each kind in its share."""
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
    """`name` and `number` make its prompts and its run unlike any other; `index` is kept. Without `with_slo` no class is asked
    for. A run ends with its last turn, or with the first that fails."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": f"Case {name} {number}."}]
    said = {**(headers or {}), **({"x-headway-slo": item.kind} if with_slo else {})}
    if item.kind == "agent":
        said.setdefault("x-headway-run-id", f"{name}-{number}")
    seen: list[Response] = []
    ended_at: list[float] = []
    for turn, text in enumerate(item.texts):
        if turn and pauses:
            await asyncio.sleep(item.pause_s)
        messages.append({"role": "user", "content": text})
        if item.kind == "agent" and turn == len(item.texts) - 1:
            said["x-headway-run-final"] = "true"
        body = {"model": model, "messages": messages, "max_tokens": item.output_tokens, "temperature": 0, "ignore_eos": True}
        one = await chat(
            http, f"{url}/v1/chat/completions", body, said, due=time.perf_counter() if turn or due is None else due
        )
        seen.append(one)
        ended_at.append(time.perf_counter())
        if not one.ok:
            break
        messages.append({"role": "assistant", "content": one.text})
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
    """Items a second that CALLERS get through who ask again at once, for so long or until each has had one. The first fifth of
    the time is not counted, in which the batches fill."""
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
