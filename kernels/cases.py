"""The one list of inputs that the kernels are tested and timed on, with tolerances, bytes moved and floating point operations.

Small ones with odd sizes and primes for tests; those marked `large` are shapes that models are served in, for a GPU.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels import add_norm, gumbel_sample, paged_attention, reference, rope_write, silu_mul, w4a16, w8a16

Arguments = dict[str, Any]
KERNELS: dict[str, Callable[..., Any]] = {
    "add_norm": add_norm.add_norm,
    "gumbel_sample": gumbel_sample.gumbel_sample,
    "paged_attention": paged_attention.paged_attention,
    "rope_write": rope_write.rope_write,
    "silu_mul": silu_mul.silu_mul,
    "w4a16": w4a16.w4a16,
    "w8a16": w8a16.w8a16,
}


class Case(NamedTuple):
    """`make` gives the arguments on a device in a type; `tolerance` is of the largest value, in float32."""

    kernel: str
    name: str
    make: Callable[[torch.dtype, str], Arguments]
    tolerance: float = 1e-5
    flops: float = 0.0
    large: bool = False

    def error(self, dtype: torch.dtype, device: str) -> float:
        """Largest difference to the twin, as a share of the twin's largest value. All results count, changed inputs too."""
        given = self.make(dtype, device)
        found = _results(KERNELS[self.kernel](**_copies(given)))
        expected = _results(getattr(reference, self.kernel)(**_copies(given)))
        return max(
            float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-9))
            for a, b in zip(found, expected, strict=True)
        )

    def num_bytes(self, dtype: torch.dtype, device: str) -> int:
        """Every input read once and every result written once."""
        given = self.make(dtype, device)
        tensors = [*filter(torch.is_tensor, given.values()), *_results(getattr(reference, self.kernel)(**_copies(given)))]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _results(given: Any) -> tuple[Tensor, ...]:
    return given if isinstance(given, tuple) else (given,)


def _copies(given: Mapping[str, Any]) -> Arguments:
    return {name: value.clone() if torch.is_tensor(value) else value for name, value in given.items()}


def _random(*shape: int, seed: int, dtype: torch.dtype, device: str) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def attention(
    lengths: list[tuple[int, int]],
    *,
    heads: int,
    kv_heads: int,
    width: int,
    page_size: int = 4,
    stored: str = "",
    **options: Any,
) -> Callable[[torch.dtype, str], Arguments]:
    """`lengths` are (new tokens, tokens with them) of each sequence; their pages lie in no order."""

    def make(dtype: torch.dtype, device: str) -> Arguments:
        needed = [-(-context // page_size) for _, context in lengths]
        shuffled = torch.randperm(sum(needed) + 3, generator=torch.Generator().manual_seed(1)).tolist()
        rows = [[shuffled.pop() for _ in range(count)] + [0] * (max(needed) - count) for count in needed]
        starts = [0]
        for new, _ in lengths:
            starts.append(starts[-1] + new)
        pages = _random(sum(needed) + 3, page_size, 2 * kv_heads, width, seed=2, dtype=dtype, device=device)
        scales = None
        if stored == "int8":
            scales = (pages.float().abs().amax(-1) / 127).clamp(min=1e-10)
            pages = (pages.float() / scales[..., None]).round().to(torch.int8)
        elif stored == "fp8":
            pages = pages.to(torch.float8_e4m3fn)
        return {
            "q": _random(starts[-1], heads, width, seed=3, dtype=dtype, device=device),
            "pages": pages,
            "page_table": torch.tensor(rows, dtype=torch.int32, device=device),
            "starts": torch.tensor(starts, dtype=torch.int32, device=device),
            "contexts": torch.tensor([context for _, context in lengths], dtype=torch.int32, device=device),
            "scale": width**-0.5,
            "longest": max(new for new, _ in lengths),
            "kv_scales": scales,
            **options,
        }

    return make


def rope(tokens: int, *, heads: int, kv_heads: int, width: int, normed: bool = False, int8: bool = False) -> Any:
    def make(dtype: torch.dtype, device: str) -> Arguments:
        slots = torch.randperm(tokens + 5, generator=torch.Generator().manual_seed(1))[:tokens]
        angles = torch.rand(64, width // 2, generator=torch.Generator().manual_seed(2)) * 6
        pages = torch.zeros(tokens + 5, 2 * kv_heads, width, dtype=torch.int8 if int8 else dtype, device=device)
        norm = _random(heads + kv_heads, width, seed=4, dtype=dtype, device=device) if normed else None
        return {
            "qkv": _random(tokens, heads + 2 * kv_heads, width, seed=3, dtype=dtype, device=device),
            "turns": torch.stack((angles.cos(), angles.sin()), -1).to(device),
            "positions": (torch.arange(tokens, device=device) * 7) % 64,
            "slots": slots.to(device),
            "pages": pages,
            "heads": heads,
            "norm": norm,
            "kv_scales": torch.zeros(tokens + 5, 2 * kv_heads, device=device) if int8 else None,
        }

    return make


def norm(rows: int, width: int, *, adds: bool = True) -> Any:
    def make(dtype: torch.dtype, device: str) -> Arguments:
        return {
            "x": _random(rows, width, seed=1, dtype=dtype, device=device),
            "delta": _random(rows, width, seed=2, dtype=dtype, device=device) if adds else None,
            "weight": _random(width, seed=3, dtype=dtype, device=device),
            "eps": 1e-5,
        }

    return make


def gated(rows: int, width: int) -> Any:
    return lambda dtype, device: {"gate_up": _random(rows, 2 * width, seed=1, dtype=dtype, device=device)}


def int8_product(rows: int, out: int, width: int) -> Any:
    def make(dtype: torch.dtype, device: str) -> Arguments:
        weight = torch.randint(-127, 128, (out, width), generator=torch.Generator().manual_seed(1), dtype=torch.int8)
        scale = torch.rand(out, generator=torch.Generator().manual_seed(2)) / 100
        x = _random(rows, width, seed=3, dtype=dtype, device=device)
        return {"x": x, "weight": weight.to(device), "scale": scale.to(device)}

    return make


def int4_product(rows: int, out: int, width: int, group: int) -> Any:
    def make(dtype: torch.dtype, device: str) -> Arguments:
        generator = torch.Generator().manual_seed(1)
        packed = torch.randint(0, 256, (out, width // 2), generator=generator, dtype=torch.uint8)
        scale = torch.rand(out, width // group, generator=generator) / 10
        zero = torch.randint(0, 16, (out, width // group), generator=generator).float()
        x = _random(rows, width, seed=3, dtype=dtype, device=device)
        return {"x": x, "packed": packed.to(device), "scale": scale.to(device), "zero": zero.to(device)}

    return make


def draws(rows: int, vocabulary: int) -> Any:
    def make(dtype: torch.dtype, device: str) -> Arguments:
        generator = torch.Generator().manual_seed(1)
        temperatures = torch.tensor([(0.0, 1.0, 0.3)[row % 3] for row in range(rows)])
        return {
            "logits": torch.randn(rows, vocabulary, generator=generator).mul(3).to(device),
            "temperatures": temperatures.to(device),
            "seeds": torch.randint(0, 2**62, (rows,), generator=generator).to(device),
            "positions": torch.arange(rows, device=device) * 1001,
        }

    return make


MIXED = [(1, 1), (1, 37), (7, 7), (5, 30), (19, 41)]
DECODE = [(1, 5), (1, 61), (1, 33)]
SMALL: dict[str, Any] = {"heads": 6, "kv_heads": 2, "width": 16}
LLAMA_8B: dict[str, Any] = {"heads": 32, "kv_heads": 8, "width": 128, "page_size": 16}

CASES: tuple[Case, ...] = (
    Case("paged_attention", "mixed", attention(MIXED, **SMALL)),
    Case("paged_attention", "one-head-odd-width", attention(MIXED, heads=1, kv_heads=1, width=24)),
    Case("paged_attention", "window", attention(MIXED, **SMALL, window=9)),
    Case("paged_attention", "decode-split", attention(DECODE, **SMALL, splits=4)),
    Case("paged_attention", "mixed-split-window", attention(MIXED, **SMALL, splits=2, window=17)),
    Case("paged_attention", "int8-kv", attention(MIXED, **SMALL, stored="int8")),
    Case("paged_attention", "fp8-kv", attention(MIXED, **SMALL, stored="fp8")),
    Case("paged_attention", "64 x 8k", attention([(1, 8192)] * 64, **LLAMA_8B, splits=8), 2e-2, large=True),
    Case(
        "paged_attention",
        "prefill 4k behind 4k",
        attention([(4096, 8192)], **LLAMA_8B),
        2e-2,
        flops=4 * 32 * 128 * (4096 * 4096 + 4096 * 4096 / 2),
        large=True,
    ),
    Case("rope_write", "plain", rope(7, heads=4, kv_heads=2, width=16)),
    Case("rope_write", "odd-width", rope(5, heads=3, kv_heads=1, width=22)),
    Case("rope_write", "normed", rope(7, heads=4, kv_heads=2, width=16, normed=True)),
    Case("rope_write", "int8-kv", rope(7, heads=4, kv_heads=2, width=16, int8=True), 1e-2),
    Case("rope_write", "8B prefill", rope(4096, heads=32, kv_heads=8, width=128), 2e-2, large=True),
    Case("add_norm", "sum", norm(5, 96)),
    Case("add_norm", "prime", norm(3, 97)),
    Case("add_norm", "no-sum", norm(2, 64, adds=False)),
    Case("add_norm", "8B prefill", norm(4096, 4096), 2e-2, large=True),
    Case("silu_mul", "small", gated(3, 96)),
    Case("silu_mul", "more-than-a-block", gated(2, 1031)),
    Case("silu_mul", "8B prefill", gated(4096, 14_336), 2e-2, large=True),
    Case("w8a16", "small", int8_product(3, 48, 64)),
    Case("w8a16", "odd", int8_product(17, 67, 131)),
    Case("w8a16", "8B decode", int8_product(1, 4096, 14_336), 2e-2, flops=2 * 4096 * 14_336, large=True),
    Case("w4a16", "groups-of-32", int4_product(3, 48, 64, 32)),
    Case("w4a16", "groups-of-128-odd-rows", int4_product(17, 67, 256, 128)),
    Case("w4a16", "8B decode", int4_product(1, 4096, 14_336, 128), 2e-2, flops=2 * 4096 * 14_336, large=True),
    Case("gumbel_sample", "small", draws(6, 97), 0.0),
    Case("gumbel_sample", "more-than-a-block", draws(5, 2053), 0.0),
    Case("gumbel_sample", "8B batch", draws(64, 128_256), 0.0, large=True),
)
