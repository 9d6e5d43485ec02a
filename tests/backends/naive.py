"""The engine's reference: straight torch, no cache, no batch, no fused matrix. Recomputes everything for each token."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from backends.models.model_config import read_model_config
from backends.models.rope import inverse_frequencies


class Naive:
    def __init__(self, directory: Path, dtype: torch.dtype) -> None:
        self.model_config, self.dtype = read_model_config(directory), dtype
        self.weights = {name: weight.to(dtype) for name, weight in load_file(directory / "model.safetensors").items()}

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> Tensor:
        """(len(ids), vocabulary) float32."""
        x = self.weights["model.embed_tokens.weight"][torch.tensor(list(ids))]
        for layer in range(self.model_config.num_layers):
            at = f"model.layers.{layer}"
            x = x + self._attention(self._norm(x, f"{at}.input_layernorm"), f"{at}.self_attn")
            x = x + self._mlp(self._norm(x, f"{at}.post_attention_layernorm"), f"{at}.mlp")
        head = "model.embed_tokens" if self.model_config.tied else "lm_head"
        return self._linear(self._norm(x, "model.norm"), head).float()

    def greedy(self, prompt: Sequence[int], count: int, stop: Sequence[int] = ()) -> list[int]:
        """Up to `count` tokens, ending with the first of `stop`."""
        ids = list(prompt)
        while len(ids) < len(prompt) + count and not (len(ids) > len(prompt) and ids[-1] in stop):
            ids.append(int(self.logits(ids)[-1].argmax()))
        return ids[len(prompt) :]

    def _linear(self, x: Tensor, module: str) -> Tensor:
        y: Tensor = x @ self.weights[f"{module}.weight"].T
        bias = self.weights.get(f"{module}.bias")
        return y if bias is None else y + bias

    def _norm(self, x: Tensor, module: str) -> Tensor:
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.model_config.norm_eps)
        normed: Tensor = self.weights[f"{module}.weight"] * scaled.to(x.dtype)
        return normed

    def _mlp(self, x: Tensor, at: str) -> Tensor:
        gate = torch.nn.functional.silu(self._linear(x, f"{at}.gate_proj"))
        return self._linear(gate * self._linear(x, f"{at}.up_proj"), f"{at}.down_proj")

    def _attention(self, x: Tensor, at: str) -> Tensor:
        tokens, width = len(x), self.model_config.head_dim
        q, k, v = (self._linear(x, f"{at}.{name}_proj").view(tokens, -1, width).transpose(0, 1) for name in "qkv")
        q, k = self._rotate(q), self._rotate(k)
        shared = self.model_config.num_heads // self.model_config.num_kv_heads
        k, v = k.repeat_interleave(shared, 0), v.repeat_interleave(shared, 0)
        scores = (q @ k.transpose(1, 2)).float() / width**0.5
        future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        mixed = torch.softmax(scores.masked_fill(future, float("-inf")), -1).to(x.dtype) @ v
        return self._linear(mixed.transpose(0, 1).reshape(tokens, -1), f"{at}.o_proj")

    def _rotate(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[1])[:, None] * inverse_frequencies(self.model_config.rope, self.model_config.head_dim)
        cos, sin = torch.cat((angles, angles), -1).cos().to(x.dtype), torch.cat((angles, angles), -1).sin().to(x.dtype)
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin
