"""The worker's settings: read once in `__main__`, passed down, never changed. `auto` is resolved here, with the reason said."""

from pathlib import Path
from typing import Generic, Literal, NamedTuple, TypeVar

import msgspec

T = TypeVar("T")
DtypeChoice = Literal["auto", "float32", "bfloat16"]
Dtype = Literal["float32", "bfloat16"]
SpeculateChoice = Literal["off", "lookup"]
KvDtype = Literal["auto", "int8"]
StepChoice = Literal["auto", "compiled", "torch"]
LinearChoice = Literal["auto", "float32", "bfloat16", "w8a8", "int4"]

DTYPE_BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2}
CPU_KV_BYTES = 1 << 30
"""What `--kv-tokens auto` takes of a host's memory at most; memory is only committed when pages are first written."""
CUDA_KV_SHARE = 0.8
"""Share of the free device memory, after the weights are loaded."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """`kv_tokens` None is auto, `host_kv_tokens` 0 is no host tier. `variant` names a build of the compiled step.

    `draft` is the directory of a model that guesses for this one. `listen` is `unix:///path` or `tcp://host:port`; `token`
    guards a TCP listener."""

    model: Path
    name: str
    listen: str
    device: str = "cpu"
    threads: int = 1
    token: str | None = None
    kv_tokens: int | None = None
    max_sequences: int = 16
    dtype: DtypeChoice = "auto"
    kv_dtype: KvDtype = "auto"
    host_kv_tokens: int = 0
    speculate: SpeculateChoice = "off"
    draft: Path | None = None
    linear: LinearChoice = "auto"
    step: StepChoice = "auto"
    variant: str = "auto"
    page_size: int = 16
    prefill_tokens: int = 512

    def __post_init__(self) -> None:
        for field in ("threads", "max_sequences", "page_size", "prefill_tokens"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}: it must be at least 1")
        if self.kv_tokens is not None and self.kv_tokens < self.page_size:
            raise ValueError(f"kv_tokens is {self.kv_tokens}: it must hold at least one page of {self.page_size}")


class Resolved(NamedTuple, Generic[T]):
    """A resolved setting and the reason to log."""

    value: T
    why: str


def resolve_dtype(choice: DtypeChoice, *, device: str) -> Resolved[Dtype]:
    """Of activations and KV. Weights may be multiplied in another type, see `linear.py`."""
    if choice != "auto":
        return Resolved(choice, "asked for")
    if device.startswith("cuda"):
        return Resolved("bfloat16", "the GPU multiplies it fastest")
    return Resolved("float32", "on CPU every operation outside of the matrices is faster in it")


def resolve_pages(
    kv_tokens: int | None, *, page_size: int, max_context: int, max_sequences: int, bytes_per_token: int, budget_bytes: int
) -> Resolved[int]:
    """Number of pages: enough for all sequences at full length if the budget allows it, and for one in any case."""
    if kv_tokens is not None:
        return Resolved(kv_tokens // page_size, "asked for")
    one = -(-max_context // page_size)
    fits = budget_bytes // (bytes_per_token * page_size)
    num_pages = max(one, min(one * max_sequences, fits))
    return Resolved(
        num_pages, f"{num_pages * page_size * bytes_per_token / 2**20:.0f} MB, one sequence takes {one} pages at most"
    )
