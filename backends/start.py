"""From settings to an engine: the worker's composition, without its socket."""

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer

from backends.checkpoint import Checkpoint, UnsupportedCheckpoint
from backends.config import CPU_KV_BYTES, CUDA_KV_SHARE, DTYPE_BYTES, Settings, resolve_dtype, resolve_pages
from backends.engine import Engine
from backends.limits import Limits
from backends.linear import LinearChooser
from backends.llama import Llama, kv_for
from backends.runner import LlamaRunner
from backends.wire import PROTOCOL, Hello

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Say = Callable[[str], None]


class Started(NamedTuple):
    engine: Engine
    hello: Hello


def start_engine(settings: Settings, say: Say) -> Started:
    """Raises UnsupportedCheckpoint or ValueError saying what is wrong with the model or the settings."""
    torch.set_num_threads(settings.threads)
    checkpoint = Checkpoint(settings.model)
    shape = checkpoint.shape
    tokenizer = read_tokenizer(settings.model)
    dtype = resolve_dtype(settings.dtype, device=settings.device)
    say(f"activations and KV in {dtype.value}: {dtype.why}")
    chooser = LinearChooser(settings.linear, DTYPES[dtype.value], settings.device)
    model = Llama(checkpoint, chooser, dtype=DTYPES[dtype.value], device=settings.device)
    for line in chooser.reasons():
        say(line)
    bytes_per_token = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * DTYPE_BYTES[dtype.value]
    num_pages = resolve_pages(
        settings.kv_tokens,
        page_size=settings.page_size,
        max_context=shape.max_positions,
        max_sequences=settings.max_sequences,
        bytes_per_token=bytes_per_token,
        budget_bytes=_kv_budget(settings.device),
    )
    say(f"{num_pages.value} pages of {settings.page_size} tokens: {num_pages.why}")
    kernels = dict(Counter(chooser.chosen_for_layers))
    limits = Limits(
        max_context=shape.max_positions,
        vocab_size=shape.vocab_size,
        num_pages=num_pages.value,
        page_size=settings.page_size,
        max_sequences=settings.max_sequences,
        prefill_tokens=settings.prefill_tokens,
        eos_tokens=frozenset(shape.eos_tokens),
        kv_bytes=bytes_per_token,
        fingerprint=f"{checkpoint.fingerprint()}-{dtype.value}" + ("-w8a8" if "w8a8" in kernels else ""),
    )
    kv = kv_for(
        shape,
        num_pages=num_pages.value,
        page_size=settings.page_size,
        dtype=DTYPES[dtype.value],
        device=settings.device,
    )
    runner = LlamaRunner(model, kv, dtype=DTYPES[dtype.value], device=settings.device)
    runner.warm_up(min(limits.prefill_tokens, limits.longest))
    engine = Engine(runner, tokenizer, limits, clock_ns=time.perf_counter_ns, rng=random.Random())
    hello = Hello(
        protocol=PROTOCOL,
        model=settings.name,
        fingerprint=limits.fingerprint,
        device=settings.device,
        max_context=limits.longest,
        page_size=limits.page_size,
        num_pages=limits.num_pages,
        max_sequences=limits.max_sequences,
        eos_tokens=shape.eos_tokens,
        kernels={"linear": json.dumps(kernels), "dtype": dtype.value},
        gpu=_gpu_uuid(settings.device),
    )
    return Started(engine, hello)


def read_tokenizer(directory: Path) -> Tokenizer:
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise UnsupportedCheckpoint(f"{directory} has no tokenizer.json")
    return Tokenizer.from_file(str(path))


def _gpu_uuid(device: str) -> str:
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.startswith("cuda") else ""


def _kv_budget(device: str) -> int:
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0] * CUDA_KV_SHARE)
    return CPU_KV_BYTES
