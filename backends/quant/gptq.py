"""GPTQ: `qweight` (in / 8, out) packed along the input, `qzeros` (groups, out / 8), `scales` (groups, out), `g_idx` (in,).

Version 1 stores zero points minus one; version 2 (`checkpoint_format: gptq_v2`) stores them as they are.
"""

from collections.abc import Mapping
from typing import Any

from backends.quant.packing import grouped, unpack
from backends.quant.tensors import Tensors
from backends.quant.weight import Weight

BITS = (2, 4, 8)


class Gptq:
    def __init__(self, config: Mapping[str, Any]) -> None:
        self._bits = int(config.get("bits", 4))
        self._version = 2 if config.get("checkpoint_format") == "gptq_v2" else 1
        self._format = config.get("checkpoint_format", "gptq")

    def problems(self) -> list[str]:
        found = [] if self._bits in BITS else [f"gptq of {self._bits} bits is not served, only of {BITS}"]
        if self._format not in ("gptq", "gptq_v2"):
            found.append(f"gptq checkpoint_format {self._format} is not served, only gptq and gptq_v2 are")
        return found

    def read(self, tensors: Tensors, module: str) -> Weight | None:
        words = tensors.maybe(f"{module}.qweight")
        if words is None:
            return None
        values = unpack(words, self._bits, 0).T
        zero = unpack(tensors.tensor(f"{module}.qzeros"), self._bits, 1)
        if self._version == 1:
            zero = (zero + 1) & ((1 << self._bits) - 1)
        scale = tensors.tensor(f"{module}.scales")
        index, bias = tensors.maybe(f"{module}.g_idx"), tensors.maybe(f"{module}.bias")
        return grouped(values, scale.T, zero.T[: values.shape[0]], bits=self._bits, index=index, bias=bias)
