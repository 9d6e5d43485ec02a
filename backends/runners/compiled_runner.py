"""Runner of the compiled step (`kernels/cpu/step.cpp`): one call from token ids to logits."""

import ctypes
import time
from array import array
from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor

from backends.engine.thread_tuner import ThreadTuner
from backends.engine.work import Sampled, StepInterrupted, Work
from backends.models.llama import Llama
from backends.models.paged_kv import Int8KV, PagedKV
from backends.models.tiles import KINDS, LANES, Matrix, TiledLinear
from backends.runners.native_library import Library
from backends.runners.sampler import sample
from backends.runners.torch_runner import asks_of
from backends.structured_output.grammar import MaskFiller

MOST_SHARED = 96
"""Most query heads to a KV head: COLUMNS of attention.h."""


class _Layer(ctypes.Structure):
    _fields_ = (
        ("attention_norm", ctypes.c_void_p),
        ("qk_norm", ctypes.c_void_p),
        ("mlp_norm", ctypes.c_void_p),
        ("qkv", Matrix),
        ("out", Matrix),
        ("gate_up", Matrix),
        ("down", Matrix),
        ("window", ctypes.c_int64),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("hidden", "inner", "heads", "kv_heads", "width", "num_layers", "vocabulary")),
        ("layers", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        ("head", Matrix),
        ("embedding", ctypes.c_void_p),
        ("embedding_kind", ctypes.c_int64),
        ("turns", ctypes.c_void_p),
        ("eps", ctypes.c_float),
    )


class _Cache(ctypes.Structure):
    _fields_ = (
        ("pages", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("kind", ctypes.c_int64),
        ("slots", ctypes.c_int64),
        ("page_size", ctypes.c_int64),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("tokens", "sequences", "sampled")),
        *(
            (name, ctypes.c_void_p)
            for name in ("ids", "starts", "lengths", "tables", "pages", "last", "logits", "best", "stop")
        ),
    )


def step_problems(model: object) -> list[str]:
    """Return why the compiled step does not support a model, or an empty list."""
    if not isinstance(model, Llama):
        return ["it runs in transformers' modelling code"]
    model_config = model.model_config
    sizes = {
        "hidden_size": model_config.hidden_size,
        "intermediate_size": model_config.intermediate_size,
        "head_dim": model_config.head_dim,
    }
    problems = [f"{name} is {size}, no multiple of {LANES}" for name, size in sizes.items() if size % LANES]
    if model_config.num_heads // model_config.num_kv_heads > MOST_SHARED:
        problems.append(f"{model_config.num_heads // model_config.num_kv_heads} query heads share a KV head, {MOST_SHARED} may")
    linears = [part for layer in model.layers for part in (layer.qkv, layer.out, layer.gate_up, layer.down)]
    if not all(isinstance(part, TiledLinear) for part in [*linears, model.head]):
        problems.append("some of its matrices are in a kernel of torch")
    return problems


class CompiledRunner:
    """Runs a model without `step_problems`. One thread at a time calls it, and a step uses up to `threads` threads."""

    def __init__(self, library: Library, model: Llama, kv: PagedKV, *, threads: int) -> None:
        model_config = model.model_config
        self._calls, self._kv, self._threads = library.calls, kv, ThreadTuner(threads)
        self._runner = library.calls.headway_runner_open()
        self._vocabulary, self._masks = model_config.vocab_size, MaskFiller()
        self._model = model
        self._kept: list[Tensor] = []
        embedding = model.embedding
        layers = (_Layer * model_config.num_layers)()
        for into, layer in zip(layers, model.layers, strict=True):
            into.attention_norm, into.mlp_norm = self._floats(layer.attention_norm), self._floats(layer.mlp_norm)
            into.qk_norm = None if layer.qk_norm is None else self._floats(layer.qk_norm)
            into.qkv, into.out = _matrix(layer.qkv), _matrix(layer.out)
            into.gate_up, into.down = _matrix(layer.gate_up), _matrix(layer.down)
            into.window = layer.window
        self._layers = layers
        heads, width = model_config.num_heads, model_config.head_dim
        rows = 2 * (heads + model_config.num_kv_heads) * width + 3 * model_config.intermediate_size
        self._token_work, self._seen_work = rows * model_config.hidden_size, 2 * heads * width
        self._shape = _Model(
            model_config.hidden_size,
            model_config.intermediate_size,
            model_config.num_heads,
            model_config.num_kv_heads,
            model_config.head_dim,
            model_config.num_layers,
            model_config.vocab_size,
            ctypes.addressof(layers),
            self._floats(model.norm),
            _matrix(model.head),
            embedding.data_ptr() if isinstance(embedding, Tensor) else None,
            KINDS[embedding.dtype] if isinstance(embedding, Tensor) else 0,
            self._floats(torch.view_as_real(model.rotations[:, 0])),
            model_config.norm_eps,
        )
        scales = kv.scales.data_ptr() if isinstance(kv, Int8KV) else None
        slots = kv.pages.shape[1] * kv.page_size
        self._cache = _Cache(kv.pages.data_ptr(), scales, KINDS[kv.pages.dtype], slots, kv.page_size)
        self._step, self._stop = _Step(), ctypes.c_int32()
        self._step.stop = ctypes.addressof(self._stop)
        self._logits = torch.empty(0, model_config.vocab_size)

    def __del__(self) -> None:
        self._calls.headway_runner_close(self._runner)

    def warm_up(self, tokens: int) -> None:
        """Run a prefill of `tokens` and one decode, so that the first request does not pay for set-up.

        Writes to the first pages, which are still unused.
        """
        pages = array("i", range(-(-tokens // self._kv.page_size)))
        for count in (tokens, 1):
            ids = array("I", bytes(4 * count))
            self._call(ids, array("i", [0]), array("i", [count]), array("i", [0]), pages, array("i", [0]))

    def interrupt(self) -> None:
        """Interrupt the step under way, if there is one, at the end of its current layer. May be called on any thread."""
        self._stop.value = 1

    @torch.inference_mode()
    def run(self, work: SequenceOf[Work]) -> list[list[Sampled]]:
        """Raise StepInterrupted if interrupted. Its only effect is then KV that is written again."""
        requests = [request for one in work if one.samples for request in asks_of(one)]
        masks = self._masks.fill([request.matcher for request in requests])
        logits, best = self._forward(work)
        samples = iter(sample(logits, requests, masks, best) if requests else ())
        return [[next(samples) for _ in range(1 + len(one.drafts))] if one.samples else [] for one in work]

    def all_logits(self, ids: SequenceOf[int], pages: list[int]) -> Tensor:
        """Return logits of all positions of a sequence in one prefill, (len(ids), vocabulary). Its KV is written to `pages`."""
        every, none = array("i", range(len(ids))), array("i", [0])
        return self._call(array("I", ids), none, array("i", [len(ids)]), none, array("i", pages), every)[0].clone()

    def _forward(self, work: SequenceOf[Work]) -> tuple[Tensor, list[int]]:
        """Return logits (rows to sample, vocabulary), valid until the next step, and each row's argmax (first of equals)."""
        ids = array("I")
        starts, lengths, tables, pages, last = (array("i") for _ in range(5))
        for one in work:
            sequence, start = one.sequence, one.start
            ids += sequence.tokens[start : start + one.length]
            ids.extend(one.drafts)
            starts.append(start)
            lengths.append(one.num_tokens)
            tables.append(len(pages))
            pages.extend(sequence.pages)
            if one.samples:
                last.extend(range(len(ids) - 1 - len(one.drafts), len(ids)))
        return self._call(ids, starts, lengths, tables, pages, last)

    def _call(
        self,
        ids: "array[int]",
        starts: "array[int]",
        lengths: "array[int]",
        tables: "array[int]",
        pages: "array[int]",
        last: "array[int]",
    ) -> tuple[Tensor, list[int]]:
        step, count = self._step, len(last)
        if count > len(self._logits):
            self._logits = torch.empty(count, self._vocabulary)
        best = array("i", bytes(4 * count))
        step.tokens, step.sequences, step.sampled = len(ids), len(starts), count
        step.ids, step.starts, step.lengths = _at(ids), _at(starts), _at(lengths)
        step.tables, step.pages, step.last = _at(tables), _at(pages), _at(last)
        step.logits, step.best = self._logits.data_ptr(), _at(best)
        model, cache = ctypes.addressof(self._shape), ctypes.addressof(self._cache)
        work, chunks = self._work(starts, lengths), len(ids) > len(starts)
        threads, began_ns = self._threads.choose(work, chunks=chunks), time.perf_counter_ns()
        self._stop.value = 0
        if not self._calls.headway_step(self._runner, model, cache, ctypes.addressof(step), threads):
            raise StepInterrupted
        self._threads.took(work, chunks=chunks, threads=threads, time=time.perf_counter_ns() - began_ns)
        return self._logits[:count], best.tolist()

    def _work(self, starts: "array[int]", lengths: "array[int]") -> int:
        """Return about how many products a layer has: of its matrices, and of attention over all positions seen."""
        seen = sum(length * (start + length // 2) for start, length in zip(starts, lengths, strict=True))
        return sum(lengths) * self._token_work + seen * self._seen_work

    def _floats(self, values: Tensor) -> int:
        self._kept.append(values.float().contiguous())
        return self._kept[-1].data_ptr()


def _matrix(linear: object) -> Matrix:
    assert isinstance(linear, TiledLinear)
    return linear.matrix


def _at(values: "array[int]") -> int:
    return values.buffer_info()[0]
