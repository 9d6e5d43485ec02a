"""Claim: on CPU the engine is as fast as llama.cpp alone, several times faster in a batch, and than transformers end to end.

Method: one random 100M Llama for all, as safetensors and as GGUF. llama.cpp is built for this processor from the sdist of
llama-cpp-python on first use (see `benchmarks/llama_cpp.py`). The configurations that its programs report are checked.
Contenders alternate within a round; medians of 5 rounds, two threads each. It needs a quiet machine. `--variant avx2` forces a
build of our step; llama.cpp is always built for the present processor.
"""

import argparse
import gc
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from backends.config import LinearChoice
from backends.runners.native_library import choose_variant
from benchmarks.engine_rig import EngineRig, random_llama
from benchmarks.llama_cpp import CACHE, LlamaCpp, prepare
from benchmarks.report import Target, arguments, finish, progress, table

ROUNDS, PREFILL, PROMPT, BATCH = 5, 512, 16, 16
VOCABULARY = 32_000
WARM = 6
"""Prompts before the first round: the engine tries steps of each size on one thread and on all, three times each."""
Measure = Callable[[], dict[str, float]]
"""Returns tokens a second by name."""


class Wanted(NamedTuple):
    """Our rate over that of the best of `peers`, with builds for AVX-512 and for others."""

    name: str
    ours: str
    peers: tuple[str, ...]
    avx512: float
    other: float


WANTED = (
    Wanted("decode_1_int8", "int8 decode 1", ("Q8_0 decode 1",), 1.2, 1.0),
    Wanted("decode_16_int8", "int8 decode 16", ("Q8_0 decode 16", "F16 decode 16"), 4.0, 2.0),
    Wanted("prefill_int8", "int8 prefill", ("Q8_0 prefill",), 4.5, 2.0),
    Wanted("prefill_bf16", "bf16 prefill", ("F16 prefill",), 2.4, 1.2),
    Wanted("end_to_end_bf16", "bf16 end to end", ("transformers end to end",), 8.0, 5.0),
)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--llama", type=Path, default=CACHE, help="where llama.cpp is built; default: %(default)s")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--variant", default="auto", help="build of our step; default: the best that this processor runs")
    parser.add_argument("--decode", type=int, help="tokens to decode; default: 64, quick: 8")
    args = parser.parse_args()
    args.decode = args.decode or (8 if args.quick else 64)
    torch.set_num_threads(args.threads)
    peer = prepare(args.llama)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args, random_llama(Path(folder) / "llama"), peer)
    medians = {name: statistics.median(values) for name, values in found.items()}
    print(table(("what", "tokens/s"), sorted(medians.items())))
    spreads = {name: [min(values), max(values)] for name, values in found.items()}
    variant = choose_variant(args.variant).name
    targets, ratios = [], {}
    for wanted in WANTED:
        ratios[wanted.name] = ratio = medians[wanted.ours] / max(medians[peer] for peer in wanted.peers)
        targets.append(Target(wanted.name, ratio, ">=", wanted.avx512 if variant.startswith("avx512") else wanted.other))
    figures = {"tokens_per_s": medians, "spread": spreads, "ratios": ratios, "llama_cpp_python": peer.release}
    finish("engine_cpu", {"variant": variant, **figures}, targets)


def measure(args: argparse.Namespace, directory: Path, peer: LlamaCpp) -> dict[str, list[float]]:
    files = peer.write(directory)
    contenders: dict[str, Measure] = {
        "int8": ours(directory, "int8", args),
        "Q8_0": lambda: llama(peer, files["Q8_0"], "Q8_0", args),
        "bf16": ours(directory, "bf16", args),
        "F16": lambda: llama(peer, files["F16"], "F16", args),
        "transformers": transformers_batching(directory, args.decode),
    }
    found: dict[str, list[float]] = {}
    for number in range(1 if args.quick else ROUNDS):
        for name, contender in contenders.items():
            for what, value in contender().items():
                found.setdefault(what, []).append(value)
            progress(f"round {number + 1}: {name}")
            gc.collect()
    return found


def ours(directory: Path, kind: str, args: argparse.Namespace) -> Measure:
    """Return a measure of the loaded and warm engine. Activations and KV are bfloat16, as llama.cpp keeps KV in F16; matrices
    are bfloat16 or W8A8."""
    rng, decode = random.Random(0), args.decode
    linear: LinearChoice = "bfloat16" if kind == "bf16" else "w8a8"
    rig = EngineRig(directory, kv_tokens=16_384, dtype="bfloat16", linear=linear, variant=args.variant)

    def prompts(number: int, length: int) -> list[list[int]]:
        return [rng.choices(range(3, VOCABULARY), k=length) for _ in range(number)]

    for _ in range(WARM):
        rig.ask(prompts(1, PREFILL), 2)

    def measured() -> dict[str, float]:
        rig.ask(prompts(1, PREFILL), 2)
        figures = {f"{kind} prefill": PREFILL / rig.ask(prompts(1, PREFILL), 1).all_s}
        for batch in (1, BATCH):
            answer = rig.ask(prompts(batch, PROMPT), decode)
            figures[f"{kind} decode {batch}"] = (answer.tokens - batch) / (answer.all_s - answer.first_s)
        if kind == "bf16":
            answer = rig.ask(prompts(BATCH, 128), decode)
            figures[f"{kind} end to end"] = answer.tokens / answer.all_s
        return figures

    return measured


def transformers_batching(directory: Path, decode: int) -> Measure:
    """Return a measure of transformers' own continuous batching, in bfloat16, with the same prompts and numbers of tokens as
    ours."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    rng = random.Random(0)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    # An end token outside of any vocabulary: every answer has the requested length.
    options = GenerationConfig(max_new_tokens=decode, do_sample=False, eos_token_id=-1, pad_token_id=0)

    def measured() -> dict[str, float]:
        prompts = [rng.choices(range(3, VOCABULARY), k=128) for _ in range(BATCH)]
        start = time.perf_counter()
        answers = model.generate_batch(inputs=prompts, generation_config=options)
        spent_s = time.perf_counter() - start
        said = [len(answer.generated_tokens) for answer in answers.values()]
        if said != [decode] * BATCH:
            raise RuntimeError(f"transformers' continuous batching returned {said} tokens, expected {decode} each")
        return {"transformers end to end": sum(said) / spent_s}

    return measured


def llama(peer: LlamaCpp, file: Path, kind: str, args: argparse.Namespace) -> dict[str, float]:
    """Run llama-bench for a prompt and one sequence, llama-batched-bench for sixteen."""
    figures = {}
    for row in peer.bench(file, prefill=PREFILL, decode=args.decode, threads=args.threads):
        said = f"{row['model_type']}, {row['n_threads']} threads, {row['backends']}, {row['model_n_params']:,} parameters"
        if kind not in row["model_type"] or (row["n_threads"], row["backends"]) != (args.threads, "CPU"):
            raise RuntimeError(f"llama-bench ran {said}, expected {kind} and {args.threads} threads on CPU")
        figures[f"{kind} prefill" if row["n_prompt"] else f"{kind} decode 1"] = float(row["avg_ts"])
    row = peer.batched(file, prompt=PROMPT, decode=args.decode, batch=BATCH, threads=args.threads)
    if (row["pl"], row["n_threads"]) != (BATCH, args.threads):
        raise RuntimeError(f"llama-batched-bench ran {row['pl']} sequences on {row['n_threads']} threads")
    figures[f"{kind} decode {BATCH}"] = float(row["speed_tg"])
    return figures


if __name__ == "__main__":
    main()
