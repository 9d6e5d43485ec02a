"""The Llama family's forward pass over paged KV, with q, k, v in one matrix and gate and up in one.

Letters: T tokens of a step, H query heads, K key/value heads, D head width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from backends.models.attention import Spans, attend
from backends.models.checkpoint import Checkpoint
from backends.models.linear import DenseLinear, Linear, LinearChooser
from backends.models.paged_kv import PagedKV
from backends.models.rope import interleave, rotations
from backends.models.tiles import TiledLinear, TiledRows
from backends.quant.weight import Weight, stack

Progress = Callable[[int, int], None]
"""Called with how many layers are loaded, of how many."""


class Batch(NamedTuple):
    """One step's tokens, (T,) each, cut into spans by window. `last` are the rows to sample after."""

    ids: Tensor
    positions: Tensor
    slots: Tensor
    spans: Mapping[int, Spans]
    last: Tensor | None


@dataclass(slots=True)
class Layer:
    """`qk_norm` (H + K, D) where q and k are normalized by head."""

    attention_norm: Tensor
    qkv: Linear
    qk_norm: Tensor | None
    out: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear
    window: int


class Llama:
    def __init__(
        self,
        checkpoint: Checkpoint,
        chooser: LinearChooser,
        *,
        dtype: torch.dtype,
        device: str,
        progress: Progress = lambda done, of: None,
    ) -> None:
        self.model_config = model_config = checkpoint.model_config
        self.windows = model_config.windows
        load = _Loader(checkpoint, chooser, dtype, device)
        self.embedding: Tensor | TiledRows = load.embedding()
        self.layers: list[Layer] = []
        for index in range(model_config.num_layers):
            self.layers.append(load.layer(index))
            progress(index + 1, model_config.num_layers)
        self.norm = load.vector("model.norm")
        self.head = load.head(self.embedding)
        if model_config.tied and isinstance(self.head, TiledLinear) and self.head.dtype is dtype:
            self.embedding = TiledRows(self.head)
        self.rotations = rotations(model_config.rope, head_dim=model_config.head_dim, positions=model_config.max_positions).to(
            device
        )
        self._eps = torch.tensor(model_config.norm_eps, device=device)
        self._rotated = model_config.num_heads + model_config.num_kv_heads
        checkpoint.files.close()

    def forward(self, batch: Batch, kv: PagedKV) -> Tensor | None:
        """Logits (len(batch.last), vocabulary) in float32; writes the K and V of all tokens."""
        model_config, norm = self.model_config, self._normalized
        x = self.embedding[batch.ids]
        turn = self.rotations[batch.positions]
        heads = (len(batch.ids), model_config.num_heads + 2 * model_config.num_kv_heads, model_config.head_dim)
        for index, layer in enumerate(self.layers):
            qkv = layer.qkv(norm(x, layer.attention_norm)).view(heads)
            if layer.qk_norm is not None:
                qkv[:, : self._rotated] = self._normalized_heads(qkv[:, : self._rotated], layer.qk_norm)
            _rotate(qkv[:, : self._rotated], turn)
            kv.write(index, batch.slots, qkv[:, model_config.num_heads :])
            mixed = attend(kv, index, qkv[:, : model_config.num_heads], batch.spans[layer.window])
            x += layer.out(mixed.flatten(1))
            gate, up = layer.gate_up(norm(x, layer.mlp_norm)).chunk(2, -1)
            x += layer.down(F.silu(gate).mul_(up))
        if batch.last is None:
            return None
        if len(batch.last) != len(x):
            x = x[batch.last]
        return self.head(norm(x, self.norm)).float()

    def _normalized(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMS norm. In float32 by the vector norm: F.rms_norm takes half as long again at decode (7.1 for 4.7 us)."""
        if x.dtype is not torch.float32:
            return F.rms_norm(x, (x.shape[-1],), weight, self.model_config.norm_eps)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return (x * torch.addcmul(self._eps, length, length, value=1 / x.shape[-1]).rsqrt_()).mul_(weight)

    def _normalized_heads(self, qk: Tensor, weight: Tensor) -> Tensor:
        """Each head of (T, H + K, D) by its own row of `weight`."""
        if qk.dtype is torch.float32:
            return self._normalized(qk, weight)
        return F.rms_norm(qk, (qk.shape[-1],), None, self.model_config.norm_eps).mul_(weight)


def _rotate(qk: Tensor, turn: Tensor) -> None:
    """In place: `qk` (T, H + K, D) in neighbouring pairs, `turn` (T, 1, D / 2) complex."""
    paired = qk.float().view(*qk.shape[:-1], -1, 2)
    torch.view_as_complex(paired).mul_(turn)
    if qk.dtype is not torch.float32:
        qk.copy_(paired.flatten(-2))


class _Loader:
    """Reads a layer at a time, so that more than the model itself is never in memory than one layer's files."""

    def __init__(self, checkpoint: Checkpoint, chooser: LinearChooser, dtype: torch.dtype, device: str) -> None:
        self._checkpoint, self._chooser, self._dtype, self._device = checkpoint, chooser, dtype, device

    def layer(self, index: int) -> Layer:
        at, model_config = f"model.layers.{index}", self._checkpoint.model_config
        return Layer(
            attention_norm=self.vector(f"{at}.input_layernorm"),
            qkv=self.linear([f"{at}.self_attn.{name}_proj" for name in "qkv"]),
            qk_norm=self._qk_norm(f"{at}.self_attn") if model_config.qk_norm else None,
            out=self.linear([f"{at}.self_attn.o_proj"]),
            mlp_norm=self.vector(f"{at}.post_attention_layernorm"),
            gate_up=self.linear([f"{at}.mlp.gate_proj", f"{at}.mlp.up_proj"]),
            down=self.linear([f"{at}.mlp.down_proj"]),
            window=model_config.windows[index],
        )

    def embedding(self) -> Tensor:
        return self._weight("model.embed_tokens").dense(self._dtype)

    def head(self, embedding: Tensor) -> Linear:
        """Where it is tied and computed in the embedding's type by torch, both are one tensor."""
        tied = self._checkpoint.model_config.tied
        head = self._chooser.build(self._weight("model.embed_tokens" if tied else "lm_head"), prefills=False)
        if tied and isinstance(head, DenseLinear) and head.weight.dtype is embedding.dtype:
            head.weight = embedding
        return head

    def vector(self, module: str) -> Tensor:
        return self._checkpoint.tensor(f"{module}.weight").to(self._device, self._dtype)

    def linear(self, modules: list[str]) -> Linear:
        return self._chooser.build(stack([self._weight(module) for module in modules]))

    def _qk_norm(self, at: str) -> Tensor:
        """In the order of the rotated pairs, as the projections' rows are."""
        model_config = self._checkpoint.model_config
        counts = {"q": model_config.num_heads, "k": model_config.num_kv_heads}
        norms = [
            interleave(self.vector(f"{at}.{name}_norm"), model_config.head_dim).expand(n, -1) for name, n in counts.items()
        ]
        return torch.cat(norms)

    def _weight(self, module: str) -> Weight:
        weight = self._checkpoint.weight(module)
        if module.endswith(("q_proj", "k_proj")):
            weight = weight.rows(lambda part: interleave(part, self._checkpoint.model_config.head_dim))
        return weight.to(self._device)
