"""Which reader a checkpoint's `quantization_config` asks for."""

from collections.abc import Callable, Mapping
from typing import Any

from backends.quant.awq import Awq
from backends.quant.block_fp8 import BlockFp8
from backends.quant.compressed import Compressed
from backends.quant.gptq import Gptq
from backends.quant.tensors import Reader

READERS: dict[str, Callable[[Mapping[str, Any]], Reader]] = {
    "awq": Awq,
    "compressed-tensors": Compressed,
    "fp8": BlockFp8,
    "gptq": Gptq,
}


def reader_for(config: Mapping[str, Any]) -> tuple[Reader, list[str]]:
    """Of a model's config.json; and why it is not served."""
    quantization = config.get("quantization_config")
    if quantization is None:
        return Compressed({}), []
    method = quantization.get("quant_method")
    if method not in READERS:
        return Compressed({}), [f"quantization {method} is not served, only {', '.join(READERS)} are"]
    reader = READERS[method](quantization)
    return reader, reader.problems()
