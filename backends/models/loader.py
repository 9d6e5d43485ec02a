"""A directory to a model that can run and what the engine must know of it: by the native path, else by transformers' code."""

from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from backends.models.checkpoint import Checkpoint, fingerprint
from backends.models.linear import LinearChooser
from backends.models.llama import Batch, Llama, Progress
from backends.models.model_config import is_native, read_config, read_eos_tokens, read_model_config
from backends.models.paged_kv import Int8KV, PagedKV
from backends.quant.weight import UnsupportedCheckpoint


class CausalModel(Protocol):
    """`windows` are those of its layers, 0 where one sees everything."""

    windows: tuple[int, ...]

    def forward(self, batch: Batch, kv: PagedKV) -> Tensor | None: ...


class LoadedModel(NamedTuple):
    """`path` says whose code computes it."""

    model: CausalModel
    path: str
    num_layers: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    eos_tokens: tuple[int, ...]
    fingerprint: str

    def kv(self, *, num_pages: int, page_size: int, dtype: torch.dtype, device: str, int8: bool = False) -> PagedKV:
        kind = Int8KV if int8 else PagedKV
        return kind(
            layers=self.num_layers,
            num_pages=num_pages,
            page_size=page_size,
            kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            dtype=dtype,
            device=device,
        )

    def kv_bytes(self, *, element_bytes: int, int8: bool = False) -> int:
        """Of one token."""
        head = self.head_dim + 4 if int8 else self.head_dim * element_bytes
        return 2 * self.num_layers * self.num_kv_heads * head


def open_model(
    directory: Path, chooser: LinearChooser, *, dtype: torch.dtype, device: str, progress: Progress = lambda done, of: None
) -> LoadedModel:
    """Raises UnsupportedCheckpoint saying what is missing."""
    config = read_config(directory)
    if is_native(config):
        checkpoint = Checkpoint(directory)
        model_config = checkpoint.model_config
        llama = Llama(checkpoint, chooser, dtype=dtype, device=device, progress=progress)
        sizes = (
            model_config.num_layers,
            model_config.num_kv_heads,
            model_config.head_dim,
            model_config.vocab_size,
            model_config.max_positions,
        )
        return LoadedModel(llama, "native", *sizes, model_config.eos_tokens, checkpoint.fingerprint())
    from backends.models.transformers_model import (
        TransformersModel,  # transformers takes seconds to import, and the native path needs none of it
    )

    if config.get("quantization_config") is not None:
        read_model_config(directory)
        raise UnsupportedCheckpoint(f"{directory}: only the native path serves quantized checkpoints")
    foreign = TransformersModel(directory, dtype=dtype, device=device)
    sizes = foreign.num_layers, foreign.num_kv_heads, foreign.head_dim, foreign.vocab_size, foreign.max_positions
    return LoadedModel(foreign, "transformers", *sizes, read_eos_tokens(directory, config), fingerprint(directory))
