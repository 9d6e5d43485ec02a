"""Matrices in the order in which our compiled products read them (`kernels/cpu/product.h`)."""

import ctypes

import torch
from torch import Tensor
from torch.nn import functional as F

from backends.quant.weight import Weight
from backends.runners.native_library import Library

LANES = 16
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
INT4 = 3


class Matrix(ctypes.Structure):
    """As in product.h."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("units", ctypes.c_int32),
        ("tiles", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("shifts", ctypes.c_void_p),
        ("order", ctypes.c_void_p),
        ("group_units", ctypes.c_int64),
    )


class TiledLinear:
    """A matrix in tiles: float32, bfloat16, int8 with a scale a row and 8-bit activations with a scale a token, or int4.

    Sums are float32 (int32 with int8), always in the same order: a row's result does not depend on the rows beside it.
    """

    _scale: Tensor | None
    _order: Tensor | None = None

    def __init__(
        self, library: Library, values: Tensor, *, stream: torch.dtype, bias: Tensor | None = None, scale: Tensor | None = None
    ) -> None:
        """`values` (out, in), `in` by 16; `scale` (out, 1) with int8."""
        assert takes_tiles(values.shape[1])
        self.dtype = values.dtype
        self._open(library, values, KINDS[values.dtype], values.element_size() * 8, stream, bias)
        self._scale = _padded(scale, self._shifts.numel())
        self.matrix.scales = None if self._scale is None else self._scale.data_ptr()

    @classmethod
    def int4(cls, library: Library, weight: Weight, *, stream: torch.dtype) -> "TiledLinear":
        """`weight` has values from -8 to 7 in groups of a multiple of 8 columns, all of one size."""
        assert weight.scale is not None
        self = cls.__new__(cls)
        self.dtype = torch.int8
        self._open(library, weight.values, INT4, 4, stream, weight.bias)
        whole, groups = self._shifts.numel(), weight.scale.shape[1]
        scale = weight.scale.float()
        shift = -(8 + (0 if weight.zero is None else weight.zero.float())) * scale
        # (out, groups) each to (tiles, groups, scale and shift, 16)
        parts = [F.pad(part, (0, 0, 0, whole - len(part))).view(-1, LANES, groups).transpose(1, 2) for part in (scale, shift)]
        self._scale = torch.stack(parts, 2).contiguous()
        self.matrix.scales, self.matrix.group_units = self._scale.data_ptr(), weight.values.shape[1] // groups // 8
        self._order = None if weight.order is None else weight.order.int().contiguous()
        self.matrix.order = None if self._order is None else self._order.data_ptr()
        return self

    def _open(self, library: Library, values: Tensor, kind: int, bits: int, stream: torch.dtype, bias: Tensor | None) -> None:
        (outputs, width), values = values.shape, values.contiguous()
        units, whole = width * bits // 32, -(-outputs // LANES) * LANES
        self._calls, self._stream = library.calls, stream
        self.tiles = torch.zeros(whole // LANES, units, 64, dtype=torch.uint8)
        self._bias, self._shifts = _padded(bias, whole), torch.zeros(whole, dtype=torch.int32)
        library.calls.headway_pack(
            kind, outputs, width, units, values.data_ptr(), self.tiles.data_ptr(), self._shifts.data_ptr()
        )
        bias_at = None if self._bias is None else self._bias.data_ptr()
        self.matrix = Matrix(
            kind, outputs, width, units, self.tiles.data_ptr(), bias_at, None, self._shifts.data_ptr(), None, 1
        )

    def __call__(self, x: Tensor) -> Tensor:
        given = x.float().contiguous()
        y = torch.empty(len(x), self.matrix.outputs)
        room = torch.empty(len(x) * (self.matrix.width + 1) * 4, dtype=torch.uint8)
        threads = torch.get_num_threads() if len(x) > 1 else 1
        self._calls.headway_product(
            ctypes.addressof(self.matrix), given.data_ptr(), len(x), y.data_ptr(), room.data_ptr(), threads
        )
        return y.to(self._stream)


class TiledRows:
    """A matrix's rows by number, as an embedding is read: for logits and tokens in one tensor."""

    def __init__(self, of: TiledLinear) -> None:
        self.of = of

    def __getitem__(self, ids: Tensor) -> Tensor:
        """(len(ids), in)."""
        tiles = self.of.tiles.view(*self.of.tiles.shape[:2], LANES, 4)
        return tiles[ids // LANES, :, ids % LANES].contiguous().view(self.of.dtype).flatten(1)


def takes_tiles(width: int) -> bool:
    return width % LANES == 0


def dense_tiles(library: Library, weight: Weight, dtype: torch.dtype, stream: torch.dtype) -> TiledLinear:
    return TiledLinear(library, weight.dense(dtype), stream=stream, bias=weight.bias)


def _padded(values: Tensor | None, count: int) -> Tensor | None:
    return None if values is None else F.pad(values.float().flatten(), (0, count - values.numel())).contiguous()
