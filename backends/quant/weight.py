"""A matrix as a checkpoint stores it, whatever the layout it came in: integers or fp8 with scales, or plain numbers."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class UnsupportedCheckpoint(ValueError):
    """What is missing or not understood, all problems at once."""


class Weight(NamedTuple):
    """`values` (out, in). With `scale` (out, groups) it means (values - zero) * scale, `group` neighbouring columns (0: all)
    to a scale, the last group perhaps shorter. `zero` is like `scale`, or None for 0. int8 values may use `bits` 4 only.

    `order` (in,): column i stands for the input's column order[i] (act-order), None where that is i.
    """

    values: Tensor
    scale: Tensor | None = None
    bias: Tensor | None = None
    zero: Tensor | None = None
    group: int = 0
    bits: int = 8
    order: Tensor | None = None

    def dense(self, dtype: torch.dtype) -> Tensor:
        """(out, in), in the input's order."""
        if self.scale is None:
            return self.values.to(dtype)
        values = self.values.float()
        if self.zero is not None:
            values = values.sub_(self._wide(self.zero))
        values = values.mul_(self._wide(self.scale))
        if self.order is not None:
            values = torch.empty_like(values).index_copy_(1, self.order, values)
        return values.to(dtype)

    def plain(self) -> "Weight":
        """The same numbers without scales."""
        return Weight(self.dense(torch.float32), None, self.bias)

    def rows(self, change: Callable[[Tensor], Tensor]) -> "Weight":
        """The same done to the rows of all parts."""
        return self._replace(
            values=change(self.values),
            scale=None if self.scale is None else change(self.scale),
            bias=None if self.bias is None else change(self.bias),
            zero=None if self.zero is None else change(self.zero),
        )

    def to(self, device: str) -> "Weight":
        moved = self.rows(lambda part: part.to(device))
        return moved if self.order is None else moved._replace(order=self.order.to(device))

    def _wide(self, part: Tensor) -> Tensor:
        """A group's number for each of its columns."""
        part = part.float()
        return part if part.shape[1] == 1 else part.repeat_interleave(self.group, 1)[:, : self.values.shape[1]]


def stack(weights: Sequence[Weight]) -> Weight:
    """One matrix that computes several: their rows one below the other. Those stored in different ways become plain."""
    if len(weights) == 1:
        return weights[0]
    if any(_manner(weight) != _manner(weights[0]) or not _same_order(weight, weights[0]) for weight in weights):
        weights = [weight.plain() for weight in weights]

    def joined(name: str) -> Tensor | None:
        parts = [getattr(weight, name) for weight in weights]
        return None if parts[0] is None else torch.cat(parts)

    if any(weight.bias is not None for weight in weights):
        weights = [_with_bias(weight) for weight in weights]
    values = torch.cat([weight.values for weight in weights])
    return weights[0]._replace(values=values, scale=joined("scale"), bias=joined("bias"), zero=joined("zero"))


def _manner(weight: Weight) -> tuple[object, ...]:
    groups = None if weight.scale is None else weight.scale.shape[1]
    return weight.values.dtype, groups, weight.zero is None, weight.group, weight.bits, weight.order is None


def _same_order(one: Weight, other: Weight) -> bool:
    return one.order is None or other.order is None or torch.equal(one.order, other.order)


def _with_bias(weight: Weight) -> Weight:
    if weight.bias is not None:
        return weight
    dtype = weight.values.dtype if weight.values.is_floating_point() and weight.scale is None else torch.float32
    return weight._replace(bias=torch.zeros(weight.values.shape[0], dtype=dtype, device=weight.values.device))
