"""The Llama that the trainer runs: Hugging Face's parameter names, so a state dict is a checkpoint.

B sequences, T tokens, H heads, G key-value heads, D width, F feed-forward width, V vocabulary.
"""

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Shape(NamedTuple):
    """A model's size; `vocab` counts the added tokens too."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocab: int
    positions: int = 4096
    rope_theta: float = 100_000.0
    norm_eps: float = 1e-5

    @property
    def head_width(self) -> int:
        return self.width // self.heads


SHAPES = {
    "pico": Shape(width=128, layers=4, heads=4, kv_heads=4, feed_forward=384, vocab=1538),
    "nano": Shape(width=256, layers=8, heads=8, kv_heads=4, feed_forward=704, vocab=1538),
}


_LOOK_BACK_FREQUENCIES, _LOOK_BACK_LOUDNESS = 6, 10.0
_WRITE, _MATCH = 0.4, 2.0


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        kv_width = shape.kv_heads * shape.head_width
        self.q_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.k_proj = nn.Linear(shape.width, kv_width, bias=False)
        self.v_proj = nn.Linear(shape.width, kv_width, bias=False)
        self.o_proj = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, blocked: Tensor | None) -> Tensor:
        """`blocked` (B, 1, T, T) is true where a token may not look; None means plainly causal."""
        B, T, D = x.shape
        H, G, K = self.shape.heads, self.shape.kv_heads, self.shape.head_width
        qkv = _linear(x, torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight)))
        q, k, v = torch.split(qkv.view(B, T, H + 2 * G, K), [H, G, G], 2)
        q, k, v = _rope(q, cos, sin).transpose(1, 2), _rope(k, cos, sin).transpose(1, 2), v.transpose(1, 2)
        k, v = k.repeat_interleave(H // G, 1), v.repeat_interleave(H // G, 1)
        if blocked is None:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            # On CPU at these lengths two bmm and a fused softmax are 1.4x faster than the flash kernel.
            scores = torch.matmul(q * K**-0.5, k.transpose(-1, -2)).masked_fill(blocked, float("-inf"))
            out = torch.matmul(torch.softmax(scores.float(), -1).to(q.dtype), v)
        return _linear(out.transpose(1, 2).reshape(B, T, D), self.o_proj.weight)


class FeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.down_proj = nn.Linear(shape.feed_forward, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = _linear(x, torch.cat((self.gate_proj.weight, self.up_proj.weight))).chunk(2, -1)
        return _linear(F.silu(gate) * up, self.down_proj.weight)


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, blocked: Tensor | None) -> Tensor:
        x = x + self.self_attn(_norm(x, self.input_layernorm), cos, sin, blocked)
        mixed: Tensor = self.mlp(_norm(x, self.post_attention_layernorm))
        return x + mixed


def _distance(head: int, shape: Shape) -> int:
    """How far a head of the first block looks back at the start: each of the first ones another distance."""
    return head % min(4, shape.kv_heads) + 1


class Net(nn.Module):
    """Token ids (B, T) in, final hidden states (B, T, D) in bf16 out; the head is the embedding."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab, shape.width)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        angles = torch.outer(
            torch.arange(shape.positions), shape.rope_theta ** (-torch.arange(0, shape.head_width, 2) / shape.head_width)
        ).repeat(1, 2)
        self.register_buffer("cos", angles.cos()[:, None].bfloat16(), persistent=False)
        self.register_buffer("sin", angles.sin()[:, None].bfloat16(), persistent=False)
        self._initialize()

    def _initialize(self) -> None:
        """Blocks start as the identity and tokens start loud (RMS 0.5), so that what a token is survives to be copied.

        The head is the embedding: the last norm starts at 0.1 to keep the first logits small. With the usual 0.02 for all,
        pico had not learned to copy after 8M tokens.
        """
        for name, weight in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(weight)
            elif weight.ndim == 2:
                nn.init.normal_(weight, std=0.5 if "embed" in name else weight.shape[1] ** -0.5)
        nn.init.constant_(self.norm.weight, 0.1)
        self._look_back()
        self._match()

    @torch.no_grad()
    def _look_back(self) -> None:
        """The first block's heads start by looking one, two and three tokens back (the last head is left free).

        Looking a token up needs to know what stood before each candidate; found by gradient alone this comes very late. All
        embeddings share a constant in dimension 0; queries and keys made of it see distance alone: with a query turned by d
        positions the score is a sum of cosines of (distance - d) over the fastest frequencies, largest at d.
        """
        shape, attention = self.shape, cast(Block, self.layers[0]).self_attn
        half = shape.head_width // 2
        frequencies = shape.rope_theta ** (-torch.arange(half) / half)
        fast = torch.arange(half) < _LOOK_BACK_FREQUENCIES
        loudness = _LOOK_BACK_LOUDNESS / shape.width**0.5
        self.embed_tokens.weight[:, 0] = 0.25 * shape.width**0.5
        for weight, heads, back in (
            (attention.q_proj.weight, shape.heads - 1, True),
            (attention.k_proj.weight, shape.kv_heads, False),
        ):
            by_head = weight.view(-1, 2, half, shape.width)
            for head in range(heads):
                distance = _distance(head, shape) if back else 0
                by_head[head] *= 0.2
                by_head[head, 0, :, 0] = loudness * fast * torch.cos(distance * frequencies)
                by_head[head, 1, :, 0] = -loudness * fast * torch.sin(distance * frequencies)

    @torch.no_grad()
    def _match(self) -> None:
        """Heads of the second block start by looking at what stands so and so far after an earlier copy of their token.

        The residual stream starts out as rooms: tokens in the first half, and in the second half what the first block's heads
        saw `distance` back, each in a place of its own. Keys read that, queries the token itself, both in the slow half of the
        rotation, where a match does not depend on how far away it is.
        """
        shape = self.shape
        first, second = (cast(Block, layer).self_attn for layer in self.layers[:2])
        half, width, heads_a_group = shape.width // 2, shape.head_width, shape.heads // shape.kv_heads
        slow = torch.tensor([row for row in range(width) if row % (width // 2) >= width // 4])
        self.embed_tokens.weight[:, half:] *= 0.1
        values = first.v_proj.weight.view(shape.kv_heads, width, -1)
        values.zero_()
        for value in values:
            nn.init.orthogonal_(value[:, 1:half])
        outputs = first.o_proj.weight.view(-1, shape.heads, width)
        queries = second.q_proj.weight.view(shape.heads, width, -1)
        keys = second.k_proj.weight.view(shape.kv_heads, width, -1)
        copied = second.v_proj.weight.view(shape.kv_heads, width, -1)
        repeated = second.o_proj.weight.view(-1, shape.heads, width)
        num_places = min(4, shape.kv_heads)
        size = min(half // num_places, width)
        for place in range(num_places):
            start = half + place * size
            outputs[start : start + size, place] = torch.eye(size, width) * _WRITE
            matched = min(size, len(slow))
            head = place * heads_a_group
            keys[place] = 0
            keys[place, slow[:matched], torch.arange(start, start + matched)] = _MATCH
            queries[head] = 0
            queries[head, slow[:matched]] = values[place // heads_a_group, :matched] * _MATCH
            nn.init.orthogonal_(copied[place])
            repeated[:, head] = copied[place].T * _WRITE

    @torch.no_grad()
    def start_alike(self, pairs: list[tuple[int, int]]) -> None:
        """Tokens that differ in the blank before them alone start near each other: to look one up is to find the other."""
        weight = self.embed_tokens.weight
        bare, blank = torch.tensor(pairs).T
        weight[bare, 1:] = 0.8 * weight[blank, 1:] + 0.6 * weight[bare, 1:]

    def forward(self, ids: Tensor, blocked: Tensor | None) -> Tensor:
        T = ids.shape[1]
        x = F.embedding(ids, self.embed_tokens.weight.bfloat16())
        for layer in self.layers:
            x = layer(x, self.cos[:T], self.sin[:T], blocked)
        return _norm(x, self.norm)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embed_tokens.weight.bfloat16())


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight.to(x.dtype))


def _norm(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    return F.rms_norm(x.float(), norm.normalized_shape, norm.weight, norm.eps).to(x.dtype)


def _rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin
