"""Block-scaled fp8: `weight` in float8_e4m3fn and `weight_scale_inv` (rows / 128, columns / 128), a factor for each block."""

from collections.abc import Mapping
from typing import Any

import torch

from backends.quant.tensors import Tensors
from backends.quant.weight import UnsupportedCheckpoint, Weight


class BlockFp8:
    def __init__(self, config: Mapping[str, Any]) -> None:
        block: list[int] = config.get("weight_block_size") or [0, 0]
        self._tall, self._wide = block

    def problems(self) -> list[str]:
        return [] if self._tall else ["fp8 without weight_block_size is not served"]

    def read(self, tensors: Tensors, module: str) -> Weight | None:
        values = tensors.maybe(f"{module}.weight")
        if values is None:
            return None
        bias = tensors.maybe(f"{module}.bias")
        if values.dtype is not torch.float8_e4m3fn:
            return Weight(values, None, bias)
        rows, width = values.shape
        blocks = tensors.tensor(f"{module}.weight_scale_inv").float()
        if blocks.shape != (-(-rows // self._tall), -(-width // self._wide)):
            raise UnsupportedCheckpoint(f"{module}.weight_scale_inv is {tuple(blocks.shape)} for {rows} x {width} values")
        scale = blocks.repeat_interleave(self._tall, 0)[:rows].contiguous()
        return Weight(values, scale, bias, group=0 if scale.shape[1] == 1 else self._wide)
