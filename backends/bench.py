"""How fast the engine serves a model here: `python -m backends.bench MODEL [--batches 1,16] [--contexts 128,1024]`.

For each number of sequences and each context length: prompt tokens a second until every sequence has its first token, then
tokens a second of steps that only decode. Random prompts, so that no prefix is shared; medians of the rounds.
"""

import argparse
import json
import random
import statistics
import sys
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from backends.config import DtypeChoice, KvDtype, LinearChoice, Settings, StepChoice
from backends.engine.engine import Engine
from backends.wire import Sampling, Submit
from backends.worker.startup import Started, start_engine


class Cell(NamedTuple):
    """`batch` sequences of `context` prompt tokens each."""

    batch: int
    context: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float


def bench(started: Started, batches: Sequence[int], contexts: Sequence[int], *, tokens: int, rounds: int) -> list[Cell]:
    """Raises ValueError where a context and its answer are longer than the engine takes."""
    engine, rng = started.engine, random.Random(0)
    prefill_steps = -(-max(batches) * max(contexts) // engine.limits.prefill_tokens) + 1
    most = tokens + 2 * prefill_steps
    if max(contexts) + most > engine.limits.longest:
        raise ValueError(
            f"a context of {max(contexts):,} and up to {most:,} tokens behind it are more than the {engine.limits.longest:,} "
            "that one sequence can have: choose shorter --contexts"
        )
    cells = []
    for batch in batches:
        for context in contexts:
            _measure(engine, rng, batch, min(context, engine.limits.prefill_tokens), 2, most)  # what is set up on first use
            found = [_measure(engine, rng, batch, context, tokens, most) for _ in range(rounds)]
            prefill, decode = (statistics.median(one[i] for one in found) for i in (0, 1))
            cells.append(Cell(batch, context, prefill, decode))
            print(f"{batch} x {context:,}: {prefill:,.0f} and {decode:,.0f} tokens/s", file=sys.stderr, flush=True)
    return cells


def _measure(engine: Engine, rng: random.Random, batch: int, context: int, steps: int, most: int) -> tuple[float, float]:
    """Tokens a second of the prompts, and of `steps` steps behind them."""
    sampling = Sampling(max_tokens=most, ignore_eos=True)
    started = time.perf_counter()
    for request in range(batch):
        prompt = array("I", rng.choices(range(engine.limits.vocab_size), k=context)).tobytes()
        engine.submit("bench", Submit(request=request, prompt=prompt, sampling=sampling))
    while len(engine.scheduler.running) < batch or any(not one.num_output for one in engine.scheduler.running):
        engine.step()
    read = time.perf_counter()
    before = sum(one.num_output for one in engine.scheduler.running)
    for _ in range(steps):
        engine.step()
    spent_s = time.perf_counter() - read
    gained = sum(one.num_output for one in engine.scheduler.running) - before
    engine.abandon("bench")
    engine.take_output()
    return batch * context / (read - started), gained / spent_s


def report(settings: Settings, started: Started, cells: Sequence[Cell]) -> dict[str, Any]:
    hello = started.hello
    return {
        "model": str(settings.model),
        "device": settings.device,
        "threads": settings.threads,
        "dtype": hello.kernels["dtype"],
        "kernels": json.loads(hello.kernels["linear"]),
        "path": hello.kernels["path"],
        "step": hello.kernels["step"],
        "cells": [cell._asdict() for cell in cells],
    }


def shown(found: dict[str, Any]) -> str:
    kernels = ", ".join(f"{count} in {name}" for name, count in found["kernels"].items()) or "transformers' own"
    run = f"{found['threads']} threads, {found['dtype']}, steps by {found['step']}"
    lines = [f"{found['model']} on {found['device']}, {run}; matrices: {kernels}"]
    lines.append(f"{'sequences':>9}  {'context':>8}  {'prefill tokens/s':>16}  {'decode tokens/s':>15}  {'each tokens/s':>13}")
    for cell in (Cell(**cell) for cell in found["cells"]):
        each = cell.decode_tokens_per_s / cell.batch
        rates = f"{cell.prefill_tokens_per_s:>16,.0f}  {cell.decode_tokens_per_s:>15,.0f}  {each:>13,.1f}"
        lines.append(f"{cell.batch:>9}  {cell.context:>8,}  {rates}")
    return "\n".join(lines)


def _numbers(text: str) -> list[int]:
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise ValueError(text)
    return found


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="headway bench engine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("model", type=Path, help="a Hugging Face directory of a causal LM")
    made.add_argument("--batches", type=_numbers, default=[1, 4, 16], metavar="N,N", help="numbers of sequences (1,4,16)")
    made.add_argument("--contexts", type=_numbers, default=[128, 1024], metavar="N,N", help="prompt tokens (128,1024)")
    made.add_argument("--tokens", type=int, default=32, help="decode steps to time")
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--device", default="cpu")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--dtype", choices=get_args(DtypeChoice), default="auto")
    made.add_argument("--kv-dtype", choices=get_args(KvDtype), default="auto")
    made.add_argument("--linear", choices=get_args(LinearChoice), default="auto", help="kernel of all matrices")
    made.add_argument("--step", choices=get_args(StepChoice), default="auto", help="whose code runs steps on CPU")
    made.add_argument("--json", action="store_true", help="print JSON instead of a table")
    made.add_argument("--out", type=Path, help="also write the JSON there")
    return made


def main() -> None:
    args = parser().parse_args()
    try:
        if args.tokens < 1 or args.rounds < 1:
            raise ValueError("--tokens and --rounds must be at least 1")
        page, batch = 16, max(args.batches)
        steps = -(-batch * max(args.contexts) // 512) + 1
        room = -(-(max(args.contexts) + args.tokens + 2 * steps) // page) * page
        settings = Settings(
            model=args.model,
            name=args.model.name,
            listen="",
            device=args.device,
            threads=args.threads,
            kv_tokens=batch * (room + page),
            max_sequences=batch,
            dtype=args.dtype,
            kv_dtype=args.kv_dtype,
            linear=args.linear,
            step=args.step,
            page_size=page,
            prefill_tokens=512,
        )
        started = start_engine(settings, lambda line: print(line, file=sys.stderr, flush=True))
        cells = bench(started, args.batches, args.contexts, tokens=args.tokens, rounds=args.rounds)
    except (ValueError, OSError) as error:
        sys.exit(f"headway bench engine: {error}")
    found = report(settings, started, cells)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found) if args.json else shown(found))


if __name__ == "__main__":
    main()
