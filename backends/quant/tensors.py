"""What a reader of a quantized layout sees of a checkpoint, and what it gives back."""

from typing import Protocol

from torch import Tensor

from backends.quant.weight import Weight


class Tensors(Protocol):
    def tensor(self, name: str) -> Tensor: ...

    def maybe(self, name: str) -> Tensor | None: ...


class Reader(Protocol):
    def problems(self) -> list[str]:
        """What the checkpoint's quantization asks for and is not served."""
        ...

    def read(self, tensors: Tensors, module: str) -> Weight | None:
        """None where the module has no tensors of this layout."""
        ...
