"""The kernels' twins in plain torch: the same names, arguments and results. They say what a kernel must compute."""

import torch
from torch import Tensor
from torch.nn import functional as F

WORD = 0xFFFFFFFF


def paged_attention(
    q: Tensor,
    pages: Tensor,
    page_table: Tensor,
    starts: Tensor,
    contexts: Tensor,
    *,
    scale: float,
    longest: int,
    window: int = 0,
    splits: int = 1,
    kv_scales: Tensor | None = None,
) -> Tensor:
    """Sequence by sequence, with the whole table of scores."""
    out = torch.empty_like(q)
    kv_heads, shared = pages.shape[2] // 2, q.shape[1] // (pages.shape[2] // 2)
    for sequence, context in enumerate(contexts.tolist()):
        first, last = int(starts[sequence]), int(starts[sequence + 1])
        held = page_table[sequence, : -(-context // pages.shape[1])].long()
        kv = pages[held].flatten(0, 1)[:context].float()
        if kv_scales is not None:
            kv = kv * kv_scales[held].flatten(0, 1)[:context, :, None]
        k, v = (part.repeat_interleave(shared, 1) for part in (kv[:, :kv_heads], kv[:, kv_heads:]))
        scores = torch.einsum("thd,chd->htc", q[first:last].float(), k) * scale
        position = torch.arange(context - (last - first), context, device=q.device)[:, None]
        key = torch.arange(context, device=q.device)
        hidden = key > position
        if window:
            hidden |= key <= position - window
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        out[first:last] = torch.einsum("htc,chd->thd", weights, v).to(q.dtype)
    return out


def rope_write(
    qkv: Tensor,
    turns: Tensor,
    positions: Tensor,
    slots: Tensor,
    pages: Tensor,
    *,
    heads: int,
    norm: Tensor | None = None,
    eps: float = 1e-6,
    kv_scales: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    turned = heads + (qkv.shape[1] - heads) // 2
    qk = qkv[:, :turned].float()
    if norm is not None:
        qk = F.rms_norm(qk, (qk.shape[-1],), None, eps) * norm.float()
    cosine, sine = turns[positions.long()][:, None].unbind(-1)
    even, odd = qk[..., 0::2], qk[..., 1::2]
    pairs = torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), -1)
    kv = torch.cat((pairs.flatten(-2)[:, heads:], qkv[:, turned:].float()), 1)
    qkv[:, :turned] = pairs.flatten(-2).to(qkv.dtype)
    if kv_scales is not None:
        step = (kv.abs().amax(-1) / 127).clamp(min=1e-10)
        kv_scales[slots.long()] = step
        kv = kv / step[..., None]
        kv = (kv.abs() + 0.5).floor() * kv.sign()
    pages[slots.long()] = kv.to(pages.dtype)
    return qkv, pages


def add_norm(x: Tensor, delta: Tensor | None, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    total = x.float() if delta is None else x.float() + delta.float()
    x.copy_(total)
    return x, (F.rms_norm(total, (x.shape[-1],), None, eps) * weight.float()).to(x.dtype)


def silu_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.float().chunk(2, -1)
    return (F.silu(gate) * up).to(gate_up.dtype)


def w8a16(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return (x.float() @ (weight.float() * scale[:, None]).T).to(x.dtype)


def w4a16(x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    values = torch.stack((packed & 15, packed >> 4), -1).flatten(-2).float()
    size = x.shape[1] // scale.shape[1]
    dense = (values - zero.repeat_interleave(size, 1)) * scale.repeat_interleave(size, 1)
    return (x.float() @ dense.T).to(x.dtype)


def gumbel_sample(logits: Tensor, temperatures: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """In 64-bit integers cut to 32, since torch has no unsigned product."""
    key = _mixed(_mixed(_mixed(seeds & WORD) ^ ((seeds >> 32) & WORD)) ^ (positions & WORD))
    tokens = _mixed(torch.arange(logits.shape[1], device=logits.device))
    uniform = (_mixed(key[:, None] ^ tokens) >> 8).float() * (1 / (1 << 24)) + 1 / (1 << 25)
    warm = temperatures[:, None] > 0
    noisy = logits.float() / torch.where(warm, temperatures[:, None], 1.0) - torch.log(-torch.log(uniform))
    return torch.where(warm, noisy, logits.float()).argmax(-1)


def _mixed(x: Tensor) -> Tensor:
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & WORD
    return x ^ (x >> 16)
