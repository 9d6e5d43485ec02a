"""Claim: on CPU the engine is as fast as llama.cpp alone, several times faster in a batch, and than transformers end to end.

Method: one random 100M Llama for all, as safetensors and as GGUF. llama.cpp is built by whoever runs this (`--llama DIR` with
its llama-bench, llama-batched-bench and llama-quantize, `gguf` installed to write the file); without it only our own figures
are shown. Contenders alternate within a round; medians of 5 rounds, two threads each. Needs a quiet machine.
"""

import argparse
import gc
import json
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from benchmarks.engine_rig import LLAMA_100M, EngineRig, random_llama
from benchmarks.report import Target, arguments, finish, progress, table

ROUNDS, PREFILL, DECODE, BATCH = 5, 512, 64, 16
VOCABULARY = 32_000
Measure = Callable[[], dict[str, float]]
"""Tokens a second by name."""


class Wanted(NamedTuple):
    """Our figure over the peer's."""

    name: str
    ours: str
    peer: str
    reach: float
    stretch: float


WANTED = (
    Wanted("decode_1_int8", "int8 decode 1", "Q8_0 decode 1", 0.8, 1.2),
    Wanted("decode_16_int8", "int8 decode 16", "Q8_0 decode 16", 2.5, 4.0),
    Wanted("prefill_bf16", "bf16 prefill", "F16 prefill", 1.8, 2.5),
    Wanted("prefill_int8", "int8 prefill", "Q8_0 prefill", 3.5, 5.0),
    Wanted("end_to_end_bf16", "bf16 end to end", "transformers end to end", 5.0, 5.0),
)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--llama", type=Path, help="folder of llama.cpp's programs")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args, random_llama(Path(folder) / "llama"))
    medians = {name: statistics.median(values) for name, values in found.items()}
    print(table(("what", "tokens/s"), sorted(medians.items())))
    targets, ratios = [], {}
    for wanted in WANTED:
        if wanted.ours in medians and wanted.peer in medians:
            ratios[wanted.name] = ratio = medians[wanted.ours] / medians[wanted.peer]
            targets.append(Target(wanted.name, ratio, ">=", wanted.reach))
            targets.append(Target(f"{wanted.name}_stretch", ratio, ">=", wanted.stretch))
    finish("engine_cpu", {"tokens_per_s": medians, "ratios": ratios}, targets)


def measure(args: argparse.Namespace, directory: Path) -> dict[str, list[float]]:
    contenders: dict[str, Measure] = {
        "int8": lambda: ours(directory, "int8", quick=args.quick),
        "bf16": lambda: ours(directory, "bf16", quick=args.quick),
        "transformers": lambda: transformers_batching(directory, quick=args.quick),
    }
    if args.llama:
        files = write_gguf(directory, args.llama)
        contenders |= {
            name: (lambda name=name, file=file: llama(args.llama, file, name, args.threads))  # type: ignore[misc]
            for name, file in files.items()
        }
    else:
        progress("without --llama the peer llama.cpp is left out")
    found: dict[str, list[float]] = {}
    for number in range(1 if args.quick else ROUNDS):
        for name, contender in contenders.items():
            for what, value in contender().items():
                found.setdefault(what, []).append(value)
            progress(f"round {number + 1}: {name}")
            gc.collect()
    return found


def ours(directory: Path, kind: str, *, quick: bool) -> dict[str, float]:
    """bf16 activations and KV with bf16 weights; int8 with float32 activations and W8A8 matrices."""
    rng, few = random.Random(0), 8 if quick else DECODE
    if kind == "bf16":
        rig = EngineRig(directory, kv_tokens=16_384, dtype="bfloat16", linear="bfloat16")
    else:
        rig = EngineRig(directory, kv_tokens=16_384, linear="w8a8")

    def prompts(number: int, length: int) -> list[list[int]]:
        return [rng.choices(range(3, VOCABULARY), k=length) for _ in range(number)]

    rig.ask(prompts(1, PREFILL), 2)
    prefill = rig.ask(prompts(1, PREFILL), 1)
    figures = {f"{kind} prefill": PREFILL / prefill.all_s}
    for batch in (1, BATCH):
        answer = rig.ask(prompts(batch, 16), few)
        figures[f"{kind} decode {batch}"] = (answer.tokens - batch) / (answer.all_s - answer.first_s)
    if kind == "bf16":
        answer = rig.ask(prompts(BATCH, 128), few)
        figures[f"{kind} end to end"] = answer.tokens / answer.all_s
    return figures


def transformers_batching(directory: Path, *, quick: bool) -> dict[str, float]:
    """Its own continuous batching, in bfloat16."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    rng, few = random.Random(0), 8 if quick else DECODE
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    prompts = [rng.choices(range(3, VOCABULARY), k=128) for _ in range(BATCH)]
    options = GenerationConfig(max_new_tokens=few, min_new_tokens=few, do_sample=False, eos_token_id=-1, pad_token_id=0)
    start = time.perf_counter()
    try:
        model.generate_batch(inputs=prompts, generation_config=options)
    except (RuntimeError, ValueError, ImportError) as error:
        progress(f"transformers' continuous batching does not run here: {error}")
        return {}
    return {"transformers end to end": BATCH * few / (time.perf_counter() - start)}


def llama(programs: Path, file: Path, name: str, threads: int) -> dict[str, float]:
    """llama-bench for a prompt and one sequence, llama-batched-bench for sixteen."""
    bench = [programs / "llama-bench", "-m", file, "-p", PREFILL, "-n", DECODE, "-t", threads, "-r", 1, "-o", "json"]
    figures = {}
    for row in json.loads(_run(bench)):
        figures[f"{name} prefill" if row["n_prompt"] else f"{name} decode 1"] = float(row["avg_ts"])
    many = ["-npp", 16, "-ntg", DECODE, "-npl", BATCH, "-t", threads, "-c", 4096, "--output-format", "jsonl"]
    lines = [line for line in _run([programs / "llama-batched-bench", "-m", file, *many]).splitlines() if line.startswith("{")]
    figures[f"{name} decode {BATCH}"] = float(json.loads(lines[-1])["speed_tg"])
    return figures


def write_gguf(directory: Path, programs: Path) -> dict[str, Path]:
    """The same weights for llama.cpp: F16 by the `gguf` package, Q8_0 by its own llama-quantize."""
    import gguf

    full, small = directory / "f16.gguf", directory / "q8_0.gguf"
    writer = gguf.GGUFWriter(full, "llama")
    shape: dict[str, Any] = LLAMA_100M
    writer.add_context_length(shape["max_position_embeddings"])
    writer.add_embedding_length(shape["hidden_size"])
    writer.add_block_count(shape["num_hidden_layers"])
    writer.add_feed_forward_length(shape["intermediate_size"])
    writer.add_head_count(shape["num_attention_heads"])
    writer.add_head_count_kv(shape["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(shape["rms_norm_eps"])
    writer.add_rope_freq_base(shape["rope_theta"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{i}>" for i in range(VOCABULARY)])
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types([1] * VOCABULARY)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    names |= {"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    for name, weight in load_file(directory / "model.safetensors").items():
        told = name.replace("model.embed_tokens", "token_embd").replace("model.norm", "output_norm")
        told = told.replace("model.layers.", "blk.")
        for ours_, theirs in names.items():
            told = told.replace(ours_, theirs)
        writer.add_tensor(told, weight.float().numpy() if weight.dim() == 1 else weight.half().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _run([programs / "llama-quantize", full, small, "Q8_0"])
    return {"F16": full, "Q8_0": small}


def _run(command: list[Any]) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
