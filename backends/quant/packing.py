"""Small integers in int32 words, the lowest bits first, and what group-quantized layouts have in common."""

from collections.abc import Sequence

import torch
from torch import Tensor

from backends.quant.weight import UnsupportedCheckpoint, Weight


def unpack(words: Tensor, bits: int, dim: int, nibbles: Sequence[int] | None = None) -> Tensor:
    """Unsigned values along `dim`, 32 / bits to a word; `nibbles` says where in its word each of them lies."""
    per_word = 32 // bits
    places = torch.tensor(list(nibbles or range(per_word)), dtype=torch.int32, device=words.device) * bits
    spread = (words.movedim(dim, -1)[..., None] >> places) & ((1 << bits) - 1)
    return spread.flatten(-2).movedim(-1, dim)


def grouped(
    values: Tensor, scale: Tensor, zero: Tensor | None, *, bits: int, index: Tensor | None, bias: Tensor | None
) -> Weight:
    """From unsigned `values` (out, in), `scale` and unsigned `zero` (out, groups); `index` is the group of each column.

    Both are shifted by half the range, so that they fit int8 and a symmetric layout has no zeros.
    """
    half = 1 << (bits - 1)
    groups, width = scale.shape[1], values.shape[1]
    size = 0 if groups == 1 else -(-width // groups)
    order = None
    if index is not None and groups > 1 and not torch.equal(index.long(), torch.arange(width) // size):
        if not torch.equal(torch.bincount(index.long(), minlength=groups), torch.full((groups,), size)):
            raise UnsupportedCheckpoint(f"its {groups} groups are of different sizes")
        order = index.argsort(stable=True)
        values = values[:, order]
    shifted = None if zero is None else zero - half
    if shifted is not None and not shifted.any():
        shifted = None
    kept = None if shifted is None else shifted.float().contiguous()
    return Weight((values - half).to(torch.int8), scale.float().contiguous(), bias, kept, size, bits, order)
