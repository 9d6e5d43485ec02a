"""Composition of a worker from its settings: model, KV pages, runner and engine, without the socket."""

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from tokenizers import Tokenizer

from backends.config import CPU_KV_BYTES, CUDA_KV_SHARE, DTYPE_BYTES, Dtype, Resolved, Settings, resolve_dtype, resolve_pages
from backends.engine.engine import Engine
from backends.engine.request_limits import RequestLimits
from backends.engine.work import Reload
from backends.kv_cache.host_cache import HostCache
from backends.models.linear import LinearChooser
from backends.models.llama import Llama
from backends.models.loader import CausalModel, LoadedModel, open_model
from backends.models.model_config import read_config
from backends.models.paged_kv import PagedKV
from backends.models.special_tokens import with_special_tokens_as_text
from backends.quant.weight import UnsupportedCheckpoint
from backends.runners.compiled_runner import CompiledRunner, step_problems
from backends.runners.native_library import Library, resolve_library
from backends.runners.page_copier import ThreadCopier
from backends.runners.registry import cpu_runner
from backends.runners.torch_runner import TorchRunner
from backends.spec_decode.draft_model import DraftModel
from backends.structured_output.grammar import Grammars
from backends.wire import PROTOCOL, Hello
from backends.worker.load_progress import ProgressBar
from backends.worker.profile_steps import profile_steps

if TYPE_CHECKING:
    from backends.runners.triton_runner import TritonRunner

DTYPES: dict[Dtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Say = Callable[[str], None]


class Started(NamedTuple):
    engine: Engine
    hello: Hello
    grammars: Grammars


class _Serving(NamedTuple):
    """The opened model with what its engine and its `Hello` need to know of how it was opened."""

    model: LoadedModel
    dtype: Resolved[Dtype]
    library: Resolved[Library | None]
    chooser: LinearChooser

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype.value]


def start_engine(settings: Settings, say: Say) -> Started:
    """Build the engine of a worker and measure its first steps.

    Raise UnsupportedCheckpoint or ValueError if something is wrong with the model or the settings.
    """
    torch.set_num_threads(settings.threads)
    read_config(settings.model)
    tokenizer = read_tokenizer(settings.model)
    serving = _open_served(settings, say)
    library = serving.library.value
    draft = _open_draft(settings, tokenizer, serving.model, serving.torch_dtype, library, say)
    draft_bytes = draft.kv_bytes(element_bytes=DTYPE_BYTES[serving.dtype.value]) if draft else 0
    limits = _limits(serving, settings, draft_bytes, say)
    kv = _allocate_kv(serving, settings, limits)
    runner = _runner(serving.model.model, kv, settings, serving.torch_dtype, library)
    say(_step_reason(runner, serving.model.model, serving.library))
    runner.warm_up(min(limits.prefill_tokens, limits.longest))
    engine = Engine(
        runner,
        tokenizer,
        limits,
        clock_ns=time.perf_counter_ns,
        rng=random.Random(),
        tier=_host_tier(settings, kv),
        lookup=settings.speculate == "lookup",
        drafter=_drafter(draft, settings, limits, serving.torch_dtype, draft_bytes, library) if draft else None,
    )
    steps = profile_steps(engine.step_cost, runner, tokenizer, limits, clock_ns=time.perf_counter_ns)
    step_s, token_s, *_ = engine.step_cost.coefficients
    say(f"a step takes {1e6 * step_s:.0f} us and {1e6 * token_s:.1f} us a token, by {steps} steps of its own")
    hello = _hello(serving, settings, limits, step=_step_of(runner, library))
    grammars = Grammars(tokenizer, vocab_size=serving.model.vocab_size, eos_tokens=serving.model.eos_tokens)
    return Started(engine, hello, grammars)


def _open_served(settings: Settings, say: Say) -> _Serving:
    """Open the served model with the type and the kernels that the settings or this machine choose, and report why."""
    dtype = resolve_dtype(settings.dtype, device=settings.device)
    say(f"activations and KV in {dtype.value}: {dtype.why}")
    library = resolve_library(settings.step, device=settings.device, variant=settings.variant)
    chooser = LinearChooser(settings.linear, DTYPES[dtype.value], settings.device, library.value)
    progress = ProgressBar(say)
    model = open_model(settings.model, chooser, dtype=DTYPES[dtype.value], device=settings.device, progress=progress.show)
    say(f"served by {'our own code' if model.path == 'native' else 'transformers modelling code over our pages'}")
    for line in chooser.reasons():
        say(line)
    return _Serving(model, dtype, library, chooser)


def _limits(serving: _Serving, settings: Settings, draft_bytes: int, say: Say) -> RequestLimits:
    """Return the limits of requests. `draft_bytes` are the draft model's bytes of KV of one token."""
    served, int8_kv = serving.model, settings.kv_dtype == "int8"
    kv_bytes = served.kv_bytes(element_bytes=DTYPE_BYTES[serving.dtype.value], int8=int8_kv)
    num_pages = resolve_pages(
        settings.kv_tokens,
        page_size=settings.page_size,
        max_context=served.max_positions,
        max_sequences=settings.max_sequences,
        bytes_per_token=kv_bytes + draft_bytes,
        budget_bytes=_kv_budget(settings.device),
    )
    say(f"{num_pages.value} pages of {settings.page_size} tokens: {num_pages.why}")
    return RequestLimits(
        max_context=served.max_positions,
        vocab_size=served.vocab_size,
        num_pages=num_pages.value,
        page_size=settings.page_size,
        max_sequences=settings.max_sequences,
        prefill_tokens=settings.prefill_tokens,
        eos_tokens=frozenset(served.eos_tokens),
        kv_bytes=kv_bytes,
        fingerprint=_fingerprint(served.fingerprint, serving.dtype.value, serving.chooser, int8_kv=int8_kv),
    )


def _allocate_kv(serving: _Serving, settings: Settings, limits: RequestLimits) -> PagedKV:
    """Return the model's KV pages. Raise ValueError if they do not fit into memory."""
    on_gpu = settings.device.startswith("cuda")
    try:
        return serving.model.kv(
            num_pages=limits.num_pages + on_gpu,  # padding rows of the GPU kernels write to one extra page
            page_size=limits.page_size,
            dtype=serving.torch_dtype,
            device=settings.device,
            int8=settings.kv_dtype == "int8",
        )
    except (MemoryError, OSError, RuntimeError) as error:  # torch has no exception type for exhausted CPU memory
        raise ValueError(
            f"{limits.num_pages:,} pages do not fit into memory: ask for fewer with --kv-tokens or kv_tokens: {error}"
        ) from error


def _hello(serving: _Serving, settings: Settings, limits: RequestLimits, *, step: str) -> Hello:
    return Hello(
        protocol=PROTOCOL,
        model=settings.name,
        fingerprint=limits.fingerprint,
        device=settings.device,
        max_context=limits.longest,
        page_size=limits.page_size,
        num_pages=limits.num_pages,
        max_sequences=limits.max_sequences,
        eos_tokens=serving.model.eos_tokens,
        kernels={
            "linear": json.dumps(dict(Counter(serving.chooser.chosen_for_layers))),
            "dtype": serving.dtype.value,
            "path": serving.model.path,
            "step": step,
        },
        grammars=True,
        gpu=_gpu_uuid(settings.device),
    )


def read_tokenizer(directory: Path) -> Tokenizer:
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise UnsupportedCheckpoint(f"{directory} has no tokenizer.json")
    return Tokenizer.from_str(with_special_tokens_as_text(path.read_text()))


def _open_draft(
    settings: Settings, tokenizer: Tokenizer, served: LoadedModel, dtype: torch.dtype, library: Library | None, say: Say
) -> LoadedModel | None:
    """Open the draft model, if one is set. Raise ValueError if its tokenizer differs from the served model's."""
    if settings.draft is None:
        return None
    read_config(settings.draft)
    draft_tokenizer = read_tokenizer(settings.draft)
    chooser = LinearChooser("auto", dtype, settings.device, library)
    draft = open_model(settings.draft, chooser, dtype=dtype, device=settings.device)
    if draft_tokenizer.get_vocab() != tokenizer.get_vocab() or draft.vocab_size != served.vocab_size:
        raise ValueError(
            f"the draft {settings.draft} has {draft.vocab_size:,} tokens and {settings.model} "
            f"{served.vocab_size:,}: a draft must have the same tokenizer"
        )
    say(f"draft model {settings.draft.name} proposes tokens where that saves time")
    return draft


def _drafter(
    draft: LoadedModel, settings: Settings, limits: RequestLimits, dtype: torch.dtype, kv_bytes: int, library: Library | None
) -> DraftModel:
    on_gpu = settings.device.startswith("cuda")
    kv = draft.kv(num_pages=limits.num_pages + on_gpu, page_size=limits.page_size, dtype=dtype, device=settings.device)
    runner = _runner(draft.model, kv, settings, dtype, library)
    runner.warm_up(min(limits.prefill_tokens, limits.longest, draft.max_positions))
    return DraftModel(
        runner,
        num_pages=limits.num_pages,
        page_size=limits.page_size,
        most_tokens=limits.prefill_tokens,
        longest=draft.max_positions,
        kv_bytes=kv_bytes,
        clock_ns=time.perf_counter_ns,
    )


def _runner(
    model: CausalModel, kv: PagedKV, settings: Settings, dtype: torch.dtype, library: Library | None
) -> "TorchRunner | CompiledRunner | TritonRunner":
    """Return the runner of a model. On a GPU, Triton kernels run native models and torch operations run all others."""
    if not settings.device.startswith("cuda"):
        return cpu_runner(model, kv, dtype=dtype, library=library, required=settings.step == "compiled")
    if isinstance(model, Llama):
        from backends.runners.triton_runner import TritonRunner  # Triton exists on Linux only and is slow to import

        return TritonRunner(model, kv, device=settings.device, max_sequences=settings.max_sequences)
    return TorchRunner(model, kv, dtype=dtype, device=settings.device)


def _step_of(runner: object, library: Library | None) -> str:
    """Return the name of the code that runs steps: a variant of the compiled step, `torch` or `triton`."""
    if isinstance(runner, CompiledRunner) and library is not None:
        return library.variant
    return "torch" if isinstance(runner, TorchRunner) else "triton"


def _step_reason(runner: object, model: CausalModel, library: Resolved[Library | None]) -> str:
    problems = [] if library.value is None or isinstance(runner, CompiledRunner) else step_problems(model)
    return f"steps by {_step_of(runner, library.value)}: {'; '.join(problems) or library.why}"


def _host_tier(settings: Settings, kv: PagedKV) -> HostCache[Reload] | None:
    slots = settings.host_kv_tokens // settings.page_size
    return HostCache(slots, ThreadCopier(kv, slots)) if slots else None


def _fingerprint(weights: str, dtype: str, chooser: LinearChooser, *, int8_kv: bool) -> str:
    """Return a hash of all that KV depends on: weights, types, and each kernel that does not use exactly the stored weights."""
    lossy = sorted({"w8a8", "int4"} & set(chooser.chosen_for_layers))
    return "-".join([weights, dtype, *lossy, *(["kv8"] if int8_kv else [])])


def _gpu_uuid(device: str) -> str:
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.startswith("cuda") else ""


def _kv_budget(device: str) -> int:
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0] * CUDA_KV_SHARE)
    return CPU_KV_BYTES
