"""Any causal LM that transformers knows, run by its own modelling code with our paged attention in the place of its own.

All sequences of a step are one packed row; each token's position is told, and the spans say who sees whom. What cannot be
run that way (no attention interface, state beside K and V, attention sinks) is refused by name when it is loaded.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from backends.models.attention import AttentionParams, attend
from backends.models.llama import Batch
from backends.models.paged_kv import PagedKV
from backends.quant.weight import UnsupportedCheckpoint

NAME = "headway"
CHANGES = {"s_aux": "attention sinks", "position_bias": "a position bias", "alibi": "ALiBi", "head_mask": "a head mask"}
"""What an attention may be given that we do not compute."""


class LayerAttention(NamedTuple):
    """One layer's, as its first call shows it."""

    kv_heads: int
    head_dim: int
    window: int
    params: AttentionParams


class _ForwardPass:
    """What the attention layers of one model share: where their KV is, and what the step computes."""

    def __init__(self) -> None:
        self.layers: dict[int, int] = {}
        self.seen: list[LayerAttention] = []
        self.kv: PagedKV | None = None
        self.batch: Batch | None = None

    def attend(
        self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scale: float | None, given: Mapping[str, Any]
    ) -> Tensor:
        """`q` (1, heads, tokens, width) to (1, tokens, heads, width)."""
        if self.kv is None or self.batch is None:
            return self._look(module, q, k, v, scale, given)
        layer = self.layers[id(module)]
        attention = self.seen[layer]
        width = v.shape[-1]
        if width < k.shape[-1]:
            v = F.pad(v, (0, k.shape[-1] - width))
        self.kv.write(layer, self.batch.slots, torch.cat((k[0], v[0])).transpose(0, 1))
        spans = self.batch.spans[attention.window]
        return attend(self.kv, layer, q[0].transpose(0, 1), spans, attention.params)[None, ..., :width]

    def _look(
        self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scale: float | None, given: Mapping[str, Any]
    ) -> Tensor:
        for name, what in CHANGES.items():
            if given.get(name) is not None:
                raise UnsupportedCheckpoint(f"its attention has {what}, which is not served")
        if k.shape[:-1] != v.shape[:-1] or v.shape[-1] > k.shape[-1]:
            raise UnsupportedCheckpoint(f"its V of {tuple(v.shape[1:])} does not fit beside its K of {tuple(k.shape[1:])}")
        if not getattr(module, "is_causal", True):
            raise UnsupportedCheckpoint("its attention is not causal")
        params = AttentionParams(scale, float(given.get("softcap") or 0.0))
        self.layers[id(module)] = len(self.seen)
        self.seen.append(LayerAttention(k.shape[1], k.shape[-1], int(given.get("sliding_window") or 0), params))
        return q.new_zeros(1, q.shape[2], q.shape[1], v.shape[-1])


def _paged(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **given: Any,
) -> tuple[Tensor, None]:
    """What transformers calls, for every model and layer: the module carries its model's step."""
    if attention_mask is not None:
        raise UnsupportedCheckpoint("its attention makes a mask of its own, which is not served")
    step: _ForwardPass = cast(Any, module).headway_step
    return step.attend(module, query, key, value, scaling, given), None


class TransformersModel:
    def __init__(self, directory: Path, *, dtype: torch.dtype, device: str) -> None:
        config = AutoConfig.from_pretrained(directory)
        if getattr(config, "quantization_config", None) is not None:
            raise UnsupportedCheckpoint(f"{config.model_type} is served by transformers' code, and not quantized")
        if config.is_encoder_decoder:
            raise UnsupportedCheckpoint(f"{config.model_type} is an encoder-decoder, only causal LMs are served")
        ALL_ATTENTION_FUNCTIONS.register(NAME, _paged)
        self._model = _load(directory, dtype, device)
        self._step = _ForwardPass()
        for module in self._model.modules():
            cast(Any, module).headway_step = self._step
        text = config.get_text_config()
        self.vocab_size: int = text.vocab_size
        self.max_positions = _max_positions(text)
        self._parameters = inspect.signature(self._model.forward).parameters
        self._look(text.num_hidden_layers, device)
        self._step.seen = [_with_window(text, index, one) for index, one in enumerate(self._step.seen)]
        self.num_layers = len(self._step.seen)
        self.num_kv_heads, self.head_dim = self._step.seen[0][:2]
        self.windows = tuple(attention.window for attention in self._step.seen)

    def forward(self, batch: Batch, kv: PagedKV) -> Tensor | None:
        """As `Llama.forward`."""
        self._step.kv, self._step.batch = kv, batch
        last = batch.last if batch.last is not None else batch.ids.new_zeros(1)
        logits = self._logits(batch.ids, batch.positions, last)
        return None if batch.last is None else logits.float()

    def _logits(self, ids: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        keeps = "logits_to_keep" in self._parameters
        options = {"logits_to_keep": rows} if keeps else {}
        logits: Tensor = self._model(input_ids=ids[None], position_ids=positions[None], use_cache=False, **options).logits[0]
        return logits if keeps else logits[rows]

    @torch.inference_mode()
    def _look(self, layers: int, device: str) -> None:
        """Runs two tokens with attention that only looks, and raises where a layer keeps something other than K and V."""
        if "position_ids" not in self._parameters:
            raise UnsupportedCheckpoint(f"{type(self._model).__name__} takes no position_ids: sequences cannot be packed")
        two = torch.arange(2, device=device)
        self._logits(two, two, two)
        seen = self._step.seen
        if len(seen) != layers or len(self._step.layers) != layers:
            raise UnsupportedCheckpoint(f"{len(seen)} of its {layers} layers attend, the others keep a state of another kind")
        if len({attention[:2] for attention in seen}) != 1:
            raise UnsupportedCheckpoint("its layers have K and V of different sizes")


def _with_window(text: Any, layer: int, attention: LayerAttention) -> LayerAttention:
    """Who sees whom is a mask to some models, which they need not tell their attention. Raises where it is none we make."""
    types = getattr(text, "layer_types", None)
    if types is None:
        if getattr(text, "attention_chunk_size", None):
            raise UnsupportedCheckpoint("its attention is chunked, which is not served")
        return attention
    if types[layer] not in ("full_attention", "sliding_attention"):
        raise UnsupportedCheckpoint(f"its layer {layer} has {types[layer]}, only full and sliding attention are served")
    return attention._replace(window=int(text.sliding_window) if types[layer] == "sliding_attention" else 0)


def _load(directory: Path, dtype: torch.dtype, device: str) -> nn.Module:
    """transformers maps the files and fills one parameter after the other, under a bar of its own."""
    try:
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, attn_implementation=NAME, use_safetensors=True
        )
    except (ValueError, KeyError, OSError) as error:
        raise UnsupportedCheckpoint(f"{directory}: {error}") from error
    if not model._supports_attention_backend:
        raise UnsupportedCheckpoint(f"{type(model).__name__} does not use transformers' attention interface")
    return model.eval().to(device)


def _max_positions(text: Any) -> int:
    """Frequencies that change with the longest sequence of a batch stop where they would."""
    longest = int(getattr(text, "max_position_embeddings", 2048))
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]
    if any(kind.get("rope_type") == "longrope" for kind in kinds):
        return min(longest, *(int(kind.get("original_max_position_embeddings", longest)) for kind in kinds))
    return longest
