"""From settings to an engine: the worker's composition, without its socket."""

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from tokenizers import Tokenizer

from backends.config import CPU_KV_BYTES, CUDA_KV_SHARE, DTYPE_BYTES, Resolved, Settings, resolve_dtype, resolve_pages
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

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Say = Callable[[str], None]


class Started(NamedTuple):
    engine: Engine
    hello: Hello
    grammars: Grammars


def start_engine(settings: Settings, say: Say) -> Started:
    """Raises UnsupportedCheckpoint or ValueError saying what is wrong with the model or the settings."""
    torch.set_num_threads(settings.threads)
    read_config(settings.model)
    tokenizer = read_tokenizer(settings.model)
    dtype = resolve_dtype(settings.dtype, device=settings.device)
    say(f"activations and KV in {dtype.value}: {dtype.why}")
    torch_dtype, int8_kv = DTYPES[dtype.value], settings.kv_dtype == "int8"
    library = resolve_library(settings.step, device=settings.device, variant=settings.variant)
    chooser = LinearChooser(settings.linear, torch_dtype, settings.device, library.value)
    bar = ProgressBar(say)
    served = open_model(settings.model, chooser, dtype=torch_dtype, device=settings.device, progress=bar.show)
    say(f"served by {'our own code' if served.path == 'native' else 'transformers modelling code over our pages'}")
    for line in chooser.reasons():
        say(line)
    kv_bytes = served.kv_bytes(element_bytes=DTYPE_BYTES[dtype.value], int8=int8_kv)
    draft = _open_draft(settings, tokenizer, served, torch_dtype, library.value, say)
    draft_bytes = draft.kv_bytes(element_bytes=DTYPE_BYTES[dtype.value]) if draft else 0
    num_pages = resolve_pages(
        settings.kv_tokens,
        page_size=settings.page_size,
        max_context=served.max_positions,
        max_sequences=settings.max_sequences,
        bytes_per_token=kv_bytes + draft_bytes,
        budget_bytes=_kv_budget(settings.device),
    )
    say(f"{num_pages.value} pages of {settings.page_size} tokens: {num_pages.why}")
    kernels = dict(Counter(chooser.chosen_for_layers))
    limits = RequestLimits(
        max_context=served.max_positions,
        vocab_size=served.vocab_size,
        num_pages=num_pages.value,
        page_size=settings.page_size,
        max_sequences=settings.max_sequences,
        prefill_tokens=settings.prefill_tokens,
        eos_tokens=frozenset(served.eos_tokens),
        kv_bytes=kv_bytes,
        fingerprint=_fingerprint(served.fingerprint, dtype.value, chooser, int8_kv=int8_kv),
    )
    on_gpu = settings.device.startswith("cuda")
    try:
        kv = served.kv(
            num_pages=limits.num_pages + on_gpu,  # the kernels' padding rows write to one page more
            page_size=limits.page_size,
            dtype=torch_dtype,
            device=settings.device,
            int8=int8_kv,
        )
    except (MemoryError, OSError, RuntimeError) as error:  # torch has no type of its own for it on a CPU
        raise ValueError(
            f"{limits.num_pages:,} pages do not fit into memory: ask for fewer with --kv-tokens or kv_tokens: {error}"
        ) from error
    runner = _runner(served.model, kv, settings, torch_dtype, library.value)
    say(_whose_steps(runner, served.model, library))
    runner.warm_up(min(limits.prefill_tokens, limits.longest))
    engine = Engine(
        runner,
        tokenizer,
        limits,
        clock_ns=time.perf_counter_ns,
        rng=random.Random(),
        tier=_host_tier(settings, kv),
        lookup=settings.speculate == "lookup",
        drafter=_drafter(draft, settings, limits, torch_dtype, draft_bytes, library.value) if draft else None,
    )
    steps = profile_steps(engine.step_cost, runner, tokenizer, limits, clock_ns=time.perf_counter_ns)
    step_s, token_s, *_ = engine.step_cost.coefficients
    say(f"a step takes {1e6 * step_s:.0f} us and {1e6 * token_s:.1f} us a token, by {steps} steps of its own")
    hello = Hello(
        protocol=PROTOCOL,
        model=settings.name,
        fingerprint=limits.fingerprint,
        device=settings.device,
        max_context=limits.longest,
        page_size=limits.page_size,
        num_pages=limits.num_pages,
        max_sequences=limits.max_sequences,
        eos_tokens=served.eos_tokens,
        kernels={
            "linear": json.dumps(kernels),
            "dtype": dtype.value,
            "path": served.path,
            "step": _step_of(runner, library.value),
        },
        grammars=True,
        gpu=_gpu_uuid(settings.device),
    )
    grammars = Grammars(tokenizer, vocab_size=served.vocab_size, eos_tokens=served.eos_tokens)
    return Started(engine, hello, grammars)


def read_tokenizer(directory: Path) -> Tokenizer:
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise UnsupportedCheckpoint(f"{directory} has no tokenizer.json")
    return Tokenizer.from_str(with_special_tokens_as_text(path.read_text()))


def _open_draft(
    settings: Settings, tokenizer: Tokenizer, served: LoadedModel, dtype: torch.dtype, library: Library | None, say: Say
) -> LoadedModel | None:
    """Raises ValueError where its tokens are not those of the model that it is to guess for."""
    if settings.draft is None:
        return None
    read_config(settings.draft)
    theirs = read_tokenizer(settings.draft)
    chooser = LinearChooser("auto", dtype, settings.device, library)
    draft = open_model(settings.draft, chooser, dtype=dtype, device=settings.device)
    if theirs.get_vocab() != tokenizer.get_vocab() or draft.vocab_size != served.vocab_size:
        raise ValueError(
            f"the draft {settings.draft} has {draft.vocab_size:,} tokens of its own and {settings.model} "
            f"{served.vocab_size:,}: a draft must have the same tokenizer"
        )
    say(f"{settings.draft.name} guesses tokens, where that saves time")
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
    """The kernels need a GPU and the native path, everything else there runs on torch's operations."""
    if not settings.device.startswith("cuda"):
        return cpu_runner(model, kv, dtype=dtype, library=library, required=settings.step == "compiled")
    if isinstance(model, Llama):
        from backends.runners.triton_runner import TritonRunner  # Triton is only there on Linux, and slow to import

        return TritonRunner(model, kv, device=settings.device, max_sequences=settings.max_sequences)
    return TorchRunner(model, kv, dtype=dtype, device=settings.device)


def _step_of(runner: object, library: Library | None) -> str:
    """The code that runs steps: a variant of the compiled step, `torch` or `triton`."""
    if isinstance(runner, CompiledRunner) and library is not None:
        return library.variant
    return "torch" if isinstance(runner, TorchRunner) else "triton"


def _whose_steps(runner: object, model: CausalModel, library: Resolved[Library | None]) -> str:
    problems = [] if library.value is None or isinstance(runner, CompiledRunner) else step_problems(model)
    return f"steps by {_step_of(runner, library.value)}: {'; '.join(problems) or library.why}"


def _host_tier(settings: Settings, kv: PagedKV) -> HostCache[Reload] | None:
    slots = settings.host_kv_tokens // settings.page_size
    return HostCache(slots, ThreadCopier(kv, slots)) if slots else None


def _fingerprint(weights: str, dtype: str, chooser: LinearChooser, *, int8_kv: bool) -> str:
    """Of what KV depends on: the weights, the types, and every kernel that does not compute with exactly the stored weights."""
    lossy = sorted({"w8a8", "int4"} & set(chooser.chosen_for_layers))
    return "-".join([weights, dtype, *lossy, *(["kv8"] if int8_kv else [])])


def _gpu_uuid(device: str) -> str:
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.startswith("cuda") else ""


def _kv_budget(device: str) -> int:
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0] * CUDA_KV_SHARE)
    return CPU_KV_BYTES
