"""Matrices in the order in which our compiled products read them (`kernels/cpu/product.h`)."""

import ctypes

import torch
from torch import Tensor
from torch.nn import functional as F

from backends.models.weight import Weight
from backends.runners.native_library import Library

LANES = 16
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


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
    )


class TiledLinear:
    """Weights in float32, bfloat16, or int8 with a scale a row and 8-bit activations with a scale a token. Sums in float32
    (int32), always in the same order: a row's result does not depend on the rows beside it."""

    def __init__(
        self, library: Library, values: Tensor, *, stream: torch.dtype, bias: Tensor | None = None, scale: Tensor | None = None
    ) -> None:
        """`values` (out, in), `in` by 16; `scale` (out, 1) with int8."""
        outputs, width = values.shape
        assert takes_tiles(values.shape[1])
        values = values.contiguous()
        units, whole = width * values.element_size() // 4, -(-outputs // LANES) * LANES
        self._calls, self._stream = library.calls, stream
        self.tiles = torch.zeros(whole // LANES, units, 64, dtype=torch.uint8)
        self._bias, self._scale = _padded(bias, whole), _padded(scale, whole)
        self._shifts = torch.zeros(whole, dtype=torch.int32)
        self.dtype, kind = values.dtype, KINDS[values.dtype]
        library.calls.headway_pack(
            kind, outputs, width, units, values.data_ptr(), self.tiles.data_ptr(), self._shifts.data_ptr()
        )
        bias_at, scale_at = (None if part is None else part.data_ptr() for part in (self._bias, self._scale))
        self.matrix = Matrix(kind, outputs, width, units, self.tiles.data_ptr(), bias_at, scale_at, self._shifts.data_ptr())

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
