"""AWQ (gemm): `qweight` (in, out / 8) and `qzeros` (groups, out / 8), eight outputs to a word in the order of its kernel,
`scales` (groups, out)."""

from collections.abc import Mapping
from typing import Any

from backends.quant.packing import grouped, unpack
from backends.quant.tensors import Tensors
from backends.quant.weight import Weight

NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in its word each of eight neighbouring outputs lies."""


class Awq:
    def __init__(self, config: Mapping[str, Any]) -> None:
        self._bits = int(config.get("bits", config.get("w_bit", 4)))
        self._version = str(config.get("version", "gemm")).lower()

    def problems(self) -> list[str]:
        found = [] if self._bits == 4 else [f"awq of {self._bits} bits is not served, only of 4"]
        return found if self._version == "gemm" else [*found, f"awq version {self._version} is not served, only gemm is"]

    def read(self, tensors: Tensors, module: str) -> Weight | None:
        words = tensors.maybe(f"{module}.qweight")
        if words is None:
            return None
        values = unpack(words, 4, 1, NIBBLES).T
        zero = unpack(tensors.tensor(f"{module}.qzeros"), 4, 1, NIBBLES).T
        scale = tensors.tensor(f"{module}.scales").T
        return grouped(values, scale, zero, bits=4, index=None, bias=tensors.maybe(f"{module}.bias"))
