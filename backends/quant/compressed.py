"""compressed-tensors: int8 and fp8 values beside their `weight_scale`, or integers packed in `weight_packed`.

Also what a checkpoint without a quantization is read by: plain values, and int8 ones that carry a scale a row.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from backends.quant.packing import grouped, unpack
from backends.quant.tensors import Tensors
from backends.quant.weight import UnsupportedCheckpoint, Weight

SERVED: dict[str, tuple[tuple[str, int], ...]] = {
    "int-quantized": (("int", 8),),
    "float-quantized": (("float", 8),),
    "naive-quantized": (("int", 8), ("float", 8)),
    "pack-quantized": (("int", 4), ("int", 8)),
}
STRATEGIES = ("tensor", "channel", "group", "block")


class Compressed:
    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._groups: Mapping[str, Any] = config.get("config_groups") or {}

    def problems(self) -> list[str]:
        return list(self._problems())

    def read(self, tensors: Tensors, module: str) -> Weight | None:
        if tensors.maybe(f"{module}.weight_packed") is not None:
            return self._packed(tensors, module)
        values, scale = tensors.maybe(f"{module}.weight"), tensors.maybe(f"{module}.weight_scale")
        if values is None:
            return None
        bias = tensors.maybe(f"{module}.bias")
        if scale is None:
            if values.dtype in (torch.int8, torch.float8_e4m3fn):
                kind = "int8" if values.dtype is torch.int8 else "fp8"
                raise UnsupportedCheckpoint(f"{module}.weight is {kind} and has no weight_scale")
            return Weight(values, None, bias)
        rows, width = values.shape
        scale = scale.float().view(-1, 1) if scale.dim() < 2 else scale.float()
        tall, wide = self._block()
        if scale.shape[0] == 1:
            scale = scale.expand(rows, -1)
        elif tall and scale.shape == (-(-rows // tall), -(-width // wide)):
            scale = scale.repeat_interleave(tall, 0)[:rows]
        if scale.shape[0] != rows:
            raise UnsupportedCheckpoint(f"{module}.weight_scale has {scale.shape[0]} values for {rows} rows")
        group = 0 if scale.shape[1] == 1 else wide or -(-width // scale.shape[1])
        return Weight(values, scale.contiguous(), bias, group=group)

    def _packed(self, tensors: Tensors, module: str) -> Weight:
        words, scale = tensors.tensor(f"{module}.weight_packed"), tensors.tensor(f"{module}.weight_scale")
        rows, width = tensors.tensor(f"{module}.weight_shape").tolist()
        bits = 32 // -(-width // words.shape[1])
        zero = tensors.maybe(f"{module}.weight_zero_point")
        zero = torch.full(scale.shape, 1 << (bits - 1)) if zero is None else unpack(zero, bits, 0)[:rows]
        index = tensors.maybe(f"{module}.weight_g_idx")
        values, bias = unpack(words, bits, 1)[:, :width], tensors.maybe(f"{module}.bias")
        return grouped(values, scale, zero, bits=bits, index=index, bias=bias)

    def _block(self) -> tuple[int, int]:
        """Rows and columns of a block, (0, 0) where no group is by blocks."""
        for group in self._groups.values():
            if block := (group.get("weights") or {}).get("block_structure"):
                return int(block[0]), int(block[1])
        return 0, 0

    def _problems(self) -> Iterator[str]:
        for name, group in self._groups.items():
            weights, form = group.get("weights") or {}, group.get("format") or self._config.get("format")
            if form not in SERVED:
                yield f"compressed-tensors {form} is not served, only {', '.join(SERVED)} are"
                continue
            kinds = [kind for kind, _ in SERVED[form]]
            if weights.get("type") not in kinds:
                yield f"{name}.weights.type is {weights.get('type')}, only {' and '.join(kinds)} are served"
            elif (weights["type"], weights.get("num_bits")) not in SERVED[form]:
                served = [str(bits) for kind, bits in SERVED[form] if kind == weights["type"]]
                yield f"{name}.weights.num_bits is {weights.get('num_bits')}, only {' and '.join(served)} are served in {form}"
            if weights.get("strategy") not in STRATEGIES:
                yield f"{name}.weights.strategy is {weights.get('strategy')}, only {', '.join(STRATEGIES)} are served"
            if form != "pack-quantized" and not weights.get("symmetric", True):
                yield f"{name}.weights.symmetric is False, only True is served in {form}"
        if (self._config.get("sparsity_config") or {}).get("format", "dense") != "dense":
            yield f"sparsity {self._config['sparsity_config']['format']} is not served, only dense is"
