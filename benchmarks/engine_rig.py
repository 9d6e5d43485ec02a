"""An engine in this process, stepped explicitly, and a random Llama of the size on which engines are compared."""

import json
import random
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from backends.config import DTYPE_BYTES, Dtype, LinearChoice
from backends.engine.engine import Engine
from backends.engine.request_limits import RequestLimits
from backends.engine.work import Reload
from backends.kv_cache.host_cache import HostCache
from backends.models.linear import LinearChooser
from backends.models.loader import LoadedModel, open_model
from backends.runners.native_library import Library, open_library
from backends.runners.page_copier import ThreadCopier
from backends.runners.registry import cpu_runner
from backends.spec_decode.draft_model import DraftModel
from backends.wire import Sampling, Submit
from backends.worker.startup import DTYPES

PAGE = 16
LLAMA_100M = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "vocab_size": 32_000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


class Silent:
    """Detokenizer without output: text is not measured."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return ""


class Answered(NamedTuple):
    """Times of an answer, in seconds from the submit."""

    first_s: float
    all_s: float
    cached: int
    tokens: int


class EngineRig:
    def __init__(
        self,
        directory: Path,
        *,
        kv_tokens: int,
        host_kv_tokens: int = 0,
        dtype: Dtype = "float32",
        linear: LinearChoice = "auto",
        lookup: bool = False,
        draft: Path | None = None,
        max_sequences: int = 16,
        served: LoadedModel | None = None,
        compiled: bool = True,
        variant: str = "auto",
    ) -> None:
        """Load the engine. `variant` is the build of the compiled step; `auto` is this processor's best."""
        kind = DTYPES[dtype]
        library = open_library(variant=variant) if compiled else None
        self.variant = library.variant if library else "torch"
        chooser = LinearChooser(linear, kind, "cpu", library)
        self.served = served or open_model(directory, chooser, dtype=kind, device="cpu")
        limits = RequestLimits(
            max_context=self.served.max_positions,
            vocab_size=self.served.vocab_size,
            num_pages=kv_tokens // PAGE,
            page_size=PAGE,
            max_sequences=max_sequences,
            prefill_tokens=512,
            eos_tokens=frozenset(self.served.eos_tokens),
            kv_bytes=self.served.kv_bytes(element_bytes=DTYPE_BYTES[dtype]),
            fingerprint="benchmark",
        )
        kv = self.served.kv(num_pages=limits.num_pages, page_size=PAGE, dtype=kind, device="cpu")
        slots = host_kv_tokens // PAGE
        tier: HostCache[Reload] | None = HostCache(slots, ThreadCopier(kv, slots)) if slots else None
        runner = cpu_runner(self.served.model, kv, dtype=kind, library=library)
        runner.warm_up(min(512, limits.longest))
        clock = time.perf_counter_ns
        drafter = None if draft is None else _drafter(draft, limits, dtype, library)
        self.engine = Engine(
            runner, Silent(), limits, clock_ns=clock, rng=random.Random(0), tier=tier, lookup=lookup, drafter=drafter
        )
        self._numbered = 0

    def ask(self, prompts: Sequence[Sequence[int]], count: int, *, ignore_eos: bool = True) -> Answered:
        """Submit all prompts at once and run until the last ends."""
        sampling = Sampling(max_tokens=count, ignore_eos=ignore_eos)
        start = time.perf_counter()
        before, ends = self._numbered, []
        for prompt in prompts:
            ids = array("I", prompt).tobytes()
            self.engine.submit("me", Submit(request=self._numbered, prompt=ids, sampling=sampling))
            self._numbered += 1
        first_s = 0.0
        while self.engine.has_work:
            self.engine.step()
            output = self.engine.take_output()
            ends += [end for _, end in output.finished]
            running = self.engine.scheduler.running
            if not first_s and (ends or any(one.num_output for one in running)):
                first_s = time.perf_counter() - start
        assert len(ends) == self._numbered - before and all(end.reason in ("stop", "length") for end in ends)
        cached, said = sum(end.num_cached_tokens for end in ends), sum(end.num_output_tokens for end in ends)
        return Answered(first_s, time.perf_counter() - start, cached, said)


def _drafter(directory: Path, limits: RequestLimits, dtype: Dtype, library: Library | None) -> DraftModel:
    kind = DTYPES[dtype]
    draft = open_model(directory, LinearChooser("auto", kind, "cpu", library), dtype=kind, device="cpu")
    kv = draft.kv(num_pages=limits.num_pages, page_size=PAGE, dtype=kind, device="cpu")
    runner = cpu_runner(draft.model, kv, dtype=kind, library=library)
    runner.warm_up(min(512, limits.longest, draft.max_positions))
    return DraftModel(
        runner,
        num_pages=limits.num_pages,
        page_size=PAGE,
        most_tokens=limits.prefill_tokens,
        longest=draft.max_positions,
        kv_bytes=draft.kv_bytes(element_bytes=DTYPE_BYTES[dtype]),
        clock_ns=time.perf_counter_ns,
    )


def random_llama(directory: Path) -> Path:
    """Write a model with the same bfloat16 weights on every call."""
    if (directory / "model.safetensors").is_file():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    generator, shape = torch.Generator().manual_seed(0), LLAMA_100M
    width, inner, kv = 768, 2048, 256

    def drawn(*size: int) -> torch.Tensor:
        return (torch.randn(*size, generator=generator) * 0.02).bfloat16()

    weights = {"model.embed_tokens.weight": drawn(32_000, width), "model.norm.weight": torch.ones(width).bfloat16()}
    for i in range(12):
        at = f"model.layers.{i}"
        for name, rows in (("q", width), ("k", kv), ("v", kv), ("o", width)):
            weights[f"{at}.self_attn.{name}_proj.weight"] = drawn(rows, width)
        for name, size in (("gate", (inner, width)), ("up", (inner, width)), ("down", (width, inner))):
            weights[f"{at}.mlp.{name}_proj.weight"] = drawn(*size)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{at}.{name}.weight"] = torch.ones(width).bfloat16()
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(shape))
    return directory
