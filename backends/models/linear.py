"""Matrix kernels, and the probe that chooses one for each matrix. Activations come and go in the stream's type.

`auto` only weighs kernels that lose nothing of the stored weights: float32 always, bfloat16 where the file is bfloat16,
W8A8 where the file is int8, int4 where it is int4. Another loss must be asked for.
"""

import math
import statistics
import time
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from backends.config import LinearChoice
from backends.models.tiles import TiledLinear, dense_tiles, takes_tiles
from backends.quant.weight import Weight
from backends.runners.native_library import Library

DECODE_ROWS, PREFILL_ROWS = 1, 128
INT4_GROUPS = (32, 64, 128, 256)
"""Columns to a scale that the int4 kernel takes; its rows come in blocks of 16."""
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


class Int4Linear:
    """int4 weights with a scale and a zero point a group, unpacked in the product: a quarter of bfloat16's memory."""

    def __init__(self, weight: Weight, stream: torch.dtype) -> None:
        weight = quantize_groups(weight)
        assert weight.scale is not None
        groups = weight.scale.shape[1]
        self._group = weight.group or weight.values.shape[1] // groups
        shift = torch.zeros_like(weight.scale) if weight.zero is None else -weight.zero * weight.scale
        self._scales = torch.stack((weight.scale, shift), -1).transpose(0, 1).to(stream).contiguous()
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(weight.values.int() + 8, 1)
        self._order = weight.order
        self._bias = None if weight.bias is None else weight.bias.to(stream)

    def __call__(self, x: Tensor) -> Tensor:
        x = x if self._order is None else x[:, self._order]
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, self._packed, self._group, self._scales)
        return y if self._bias is None else y.add_(self._bias)


def quantize_rows(weight: Weight) -> tuple[Tensor, Tensor]:
    """(int8 values, scale (out, 1)): as stored, else symmetric with one scale a row."""
    if stored_as(weight) == "int8" and weight.scale is not None:
        return weight.values, weight.scale
    dense = weight.dense(torch.float32)
    scale = (dense.abs().amax(1, keepdim=True) / 127).clamp(min=1e-10)
    return (dense / scale).round().clamp(-127, 127).to(torch.int8), scale


def quantize_groups(weight: Weight) -> Weight:
    """int4 in groups of 128 columns, or as many as divide them: as stored, else with the zero point that loses least."""
    if stored_as(weight) == "int4":
        return weight
    dense = weight.dense(torch.float32)
    rows, width = dense.shape
    if not takes_int4(weight):
        raise ValueError(f"a matrix of {rows} x {width} is not served in int4: it takes rows by 16 and columns by 32")
    size = next(size for size in (128, 64, 32) if width % size == 0)
    groups = dense.view(rows, -1, size)
    low, high = groups.amin(-1), groups.amax(-1)
    scale = ((high - low) / 15).clamp(min=1e-10)
    zero = -8 - low / scale
    values = (groups / scale[..., None] + zero[..., None]).round().clamp(-8, 7).to(torch.int8)
    return Weight(values.view(rows, width), scale, weight.bias, zero, size, bits=4)


def takes_int4(weight: Weight) -> bool:
    rows, width = weight.values.shape
    return width % 32 == 0 and rows % 16 == 0


Stored = Literal["float32", "bfloat16", "int8", "int4", "scaled"]


def stored_as(weight: Weight) -> Stored:
    """What the file's layout is to the kernels: `scaled` is any that only a plain matrix serves."""
    if weight.scale is None:
        return "bfloat16" if weight.values.dtype is torch.bfloat16 else "float32"
    rows, width = weight.values.shape
    size = weight.group or width
    if weight.bits == 4 and size in INT4_GROUPS and width % size == 0 and rows % 16 == 0:
        return "int4"
    symmetric = weight.zero is None and weight.scale.shape[1] == 1
    return "int8" if symmetric and weight.bits == 8 and weight.values.dtype is torch.int8 else "scaled"


Build = Callable[[Weight, torch.dtype], Linear]
KERNELS: dict[str, Build] = {
    "float32": lambda weight, stream: DenseLinear(weight, torch.float32, stream),
    "bfloat16": lambda weight, stream: DenseLinear(weight, torch.bfloat16, stream),
    "int4": Int4Linear,
}


def kernels_of(library: Library | None) -> dict[str, Build]:
    """Our compiled products where there are some and they take the matrix, else torch's."""
    if library is None:
        return KERNELS

    def dense(name: str, dtype: torch.dtype) -> Build:
        def build(weight: Weight, stream: torch.dtype) -> Linear:
            if takes_tiles(weight.values.shape[1]):
                return dense_tiles(library, weight, dtype, stream)
            return KERNELS[name](weight, stream)

        return build

    def w8a8(weight: Weight, stream: torch.dtype) -> Linear:
        if not takes_tiles(weight.values.shape[1]):
            return KERNELS["float32"](weight, stream)
        values, scale = quantize_rows(weight)
        return TiledLinear(library, values, stream=stream, bias=weight.bias, scale=scale)

    return {
        "float32": dense("float32", torch.float32),
        "bfloat16": dense("bfloat16", torch.bfloat16),
        "w8a8": w8a8,
        "int4": lambda weight, stream: TiledLinear.int4(library, quantize_groups(weight), stream=stream),
    }


KEEPS: dict[Stored, tuple[str, ...]] = {
    "float32": ("float32",),
    "bfloat16": ("float32", "bfloat16"),
    "int8": ("float32", "w8a8"),
    "int4": ("int4",),
    "scaled": ("float32",),
}
"""Kernels that compute with exactly the stored weights. The first is taken unless another is clearly faster."""


class Timing(NamedTuple):
    kernel: str
    decode_us: float
    prefill_us: float


class Shape(NamedTuple):
    out: int
    width: int
    stored: Stored
    prefills: bool


class LinearChooser:
    """One decision for each shape and stored type; `timings` say why.

    Asked for int4, it leaves the matrix that logits come from as it is stored, and those whose shape the kernel does not take.
    """

    def __init__(self, choice: LinearChoice, stream: torch.dtype, device: str, library: Library | None = None) -> None:
        if choice in ("w8a8", "int4") and device != "cpu":
            raise ValueError(f"{choice} runs on cpu, not on {device}: choose another --linear")
        if choice == "w8a8" and library is None:
            raise ValueError("w8a8 runs in the compiled step alone, which this worker does not have: choose another --linear")
        self._choice, self._stream, self._device = choice, stream, device
        self._kernels = kernels_of(library)
        self.chosen: dict[Shape, str] = {}
        self.timings: dict[Shape, list[Timing]] = {}
        self.chosen_for_layers: list[str] = []

    def build(self, weight: Weight, *, prefills: bool = True) -> Linear:
        """`prefills` is false for a matrix that only sees the rows to sample after."""
        out, width = weight.values.shape
        key = Shape(out, width, stored_as(weight), prefills)
        if key not in self.chosen:
            self.chosen[key] = self._choose(weight, key)
        self.chosen_for_layers.append(self.chosen[key])
        return self._kernels[self.chosen[key]](weight, self._stream)

    def reasons(self) -> list[str]:
        """One line a shape: what was chosen, and the times that spoke for it."""
        lines = []
        for key, kernel in self.chosen.items():
            timings = self.timings.get(key, [])
            measured = ", ".join(f"{t.kernel} {t.decode_us:.0f} / {t.prefill_us:.0f} us" for t in timings)
            lines.append(f"{key.width} x {key.out} in {kernel}: {measured or 'the only choice'}")
        return lines

    def _choose(self, weight: Weight, key: Shape) -> str:
        if self._choice == "int4" and not (key.prefills and takes_int4(weight)):
            return KEEPS[key.stored][0] if self._stream is torch.float32 else candidates(key.stored, self._stream)[0]
        if self._choice != "auto":
            return self._choice
        if self._device != "cpu":
            return "bfloat16" if self._stream is torch.bfloat16 else "float32"
        names = [name for name in candidates(key.stored, self._stream) if name in self._kernels]
        if len(names) == 1:
            return names[0]
        timings = [
            _time(name, self._kernels[name](weight, self._stream), weight.values.shape[1], self._stream) for name in names
        ]
        self.timings[key] = timings
        return fastest(timings, prefills=key.prefills)


def candidates(stored: Stored, stream: torch.dtype) -> tuple[str, ...]:
    """A bfloat16 stream is asked for, and what is not stored in integers is then served in it."""
    if stream is torch.bfloat16 and stored not in ("int8", "int4"):
        return ("bfloat16",)
    return KEEPS[stored]


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
