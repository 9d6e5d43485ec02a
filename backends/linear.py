"""Matrix kernels, and the probe that chooses one for each matrix. Activations come and go in the stream's type.

`auto` only weighs kernels that lose nothing of the stored weights: float32 always, bfloat16 where the file is bfloat16,
W8A8 where the file is int8. Another loss must be asked for.
"""

import math
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from backends.checkpoint import Weight
from backends.config import LinearChoice

DECODE_ROWS, PREFILL_ROWS = 1, 128
MARGIN = 0.9
"""Another kernel must take less than this share of float32's time, so that noise chooses nothing."""


class Linear(Protocol):
    """(rows, in) to (rows, out), both in the stream's type."""

    def __call__(self, x: Tensor) -> Tensor: ...


class DenseLinear:
    """Weights in float32 or bfloat16; rows are cast to it and back."""

    def __init__(self, weight: Weight, dtype: torch.dtype, stream: torch.dtype) -> None:
        self.weight = weight.dense(dtype)
        self.bias = None if weight.bias is None else weight.bias.to(dtype)
        self._dtype, self._stream = dtype, stream

    def __call__(self, x: Tensor) -> Tensor:
        if self._dtype is self._stream:
            return F.linear(x, self.weight, self.bias)
        return F.linear(x.to(self._dtype), self.weight, self.bias).to(self._stream)


class W8A8Linear:
    """int8 weights with a scale a row, activations in unsigned 8 bit (zero point 128) with a scale a token.

    oneDNN multiplies signed activations in a reference kernel that is hundreds of times slower.
    """

    def __init__(self, weight: Weight, stream: torch.dtype) -> None:
        values, scale = quantize_rows(weight)
        self._packed = torch.ops.onednn.qlinear_prepack(values.contiguous(), None)
        self._scale = scale.float().view(-1).contiguous()
        self._zeros = torch.zeros(values.shape[0], dtype=torch.long)
        self._bias = None if weight.bias is None else weight.bias.to(stream)
        self._stream = stream

    def __call__(self, x: Tensor) -> Tensor:
        x = x.float()
        steps = x.abs().amax(-1, keepdim=True).mul_(1 / 127).clamp_(min=1e-10)
        quantized = (x / steps).round_().add_(128).to(torch.uint8)
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            quantized, 1.0, 128, self._packed, self._scale, self._zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        y = y.mul_(steps).to(self._stream)
        return y if self._bias is None else y.add_(self._bias)


def quantize_rows(weight: Weight) -> tuple[Tensor, Tensor]:
    """(int8 values, scale (out, 1)): as stored, else symmetric with one scale a row."""
    if weight.scale is not None:
        return weight.values, weight.scale
    dense = weight.values.float()
    scale = (dense.abs().amax(1, keepdim=True) / 127).clamp(min=1e-10)
    return (dense / scale).round().clamp(-127, 127).to(torch.int8), scale


Build = Callable[[Weight, torch.dtype], Linear]
KERNELS: dict[str, Build] = {
    "float32": lambda weight, stream: DenseLinear(weight, torch.float32, stream),
    "bfloat16": lambda weight, stream: DenseLinear(weight, torch.bfloat16, stream),
    "w8a8": W8A8Linear,
}


class Timing(NamedTuple):
    kernel: str
    decode_us: float
    prefill_us: float


class Shape(NamedTuple):
    out: int
    width: int
    stored: torch.dtype
    prefills: bool


class LinearChooser:
    """One decision for each shape and stored type; `timings` say why."""

    def __init__(self, choice: LinearChoice, stream: torch.dtype, device: str) -> None:
        if choice == "w8a8" and device != "cpu":
            raise ValueError(f"w8a8 runs on cpu, not on {device}: choose another --linear")
        self._choice, self._stream, self._device = choice, stream, device
        self.chosen: dict[Shape, str] = {}
        self.timings: dict[Shape, list[Timing]] = {}
        self.chosen_for_layers: list[str] = []

    def build(self, weight: Weight, *, prefills: bool = True) -> Linear:
        """`prefills` is false for a matrix that only sees the rows to sample after."""
        out, width = weight.values.shape
        key = Shape(out, width, weight.values.dtype, prefills)
        if key not in self.chosen:
            self.chosen[key] = self._choose(weight, key)
        self.chosen_for_layers.append(self.chosen[key])
        return KERNELS[self.chosen[key]](weight, self._stream)

    def reasons(self) -> list[str]:
        """One line a shape: what was chosen, and the times that spoke for it."""
        lines = []
        for key, kernel in self.chosen.items():
            timings = self.timings.get(key, [])
            measured = ", ".join(f"{t.kernel} {t.decode_us:.0f} / {t.prefill_us:.0f} us" for t in timings)
            lines.append(f"{key.width} x {key.out} in {kernel}: {measured or 'the only choice'}")
        return lines

    def _choose(self, weight: Weight, key: Shape) -> str:
        if self._choice != "auto":
            return self._choice
        if self._device != "cpu":
            return "bfloat16" if self._stream is torch.bfloat16 else "float32"
        names = candidates(weight.values.dtype, self._stream)
        if len(names) == 1:
            return names[0]
        timings = [_time(name, KERNELS[name](weight, self._stream), weight.values.shape[1], self._stream) for name in names]
        self.timings[key] = timings
        return fastest(timings, prefills=key.prefills)


def candidates(stored: torch.dtype, stream: torch.dtype) -> list[str]:
    """Kernels that compute with exactly the stored weights. A bfloat16 stream is asked for, and is then served in it."""
    if stored is torch.int8:
        return ["float32", "w8a8"]
    if stream is torch.bfloat16:
        return ["bfloat16"]
    return ["float32", "bfloat16"] if stored is torch.bfloat16 else ["float32"]


def fastest(timings: list[Timing], *, prefills: bool = True) -> str:
    """By the geometric mean of the decode and the prefill time, or by decode alone; with a margin in favour of the first."""

    def cost(timing: Timing) -> float:
        return math.sqrt(timing.decode_us * timing.prefill_us) if prefills else timing.decode_us

    best = min(timings, key=cost)
    return best.kernel if cost(best) < MARGIN * cost(timings[0]) else timings[0].kernel


def _time(name: str, linear: Linear, width: int, stream: torch.dtype) -> Timing:
    decode, prefill = (_median_us(linear, torch.randn(rows, width).to(stream)) for rows in (DECODE_ROWS, PREFILL_ROWS))
    return Timing(name, decode, prefill)


def _median_us(linear: Linear, x: Tensor) -> float:
    times = []
    with torch.inference_mode():
        for _ in range(17):
            start = time.perf_counter()
            linear(x)
            times.append(time.perf_counter() - start)
    return statistics.median(times[2:]) * 1e6
