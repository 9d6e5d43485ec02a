"""Exactness while training: one forward pass tells which reference answers greedy decoding would give, token for token."""

from collections import defaultdict

import torch

from backends.zoo.batches import Encode, pack
from backends.zoo.curriculum import CELLS, held_out
from backends.zoo.instance import Instance
from backends.zoo.net import Net

_ROW = 512


def probe_instances(size: int) -> list[Instance]:
    """Of every cell that fits a short row."""
    short = [(skill, level) for skill, level in CELLS if skill != "recall" or level == 1]
    return [one for skill, level in short for one in held_out(skill, level, size)]


@torch.inference_mode()
def exactness(net: Net, encode: Encode, instances: list[Instance]) -> dict[str, float]:
    """Share of instances of each cell whose every assistant token is the most likely one."""
    encoded = [encode(one) for one in instances]
    right = [False] * len(instances)
    start = 0
    while start < len(instances):
        ids, owners, said = pack(iter(encoded[start:]), 16, _ROW)
        num_packed = int(owners.max())
        blocked = ~((owners[:, :, None] == owners[:, None, :]) & torch.ones(_ROW, _ROW, dtype=torch.bool).tril())
        guess = net.logits(net(ids, blocked[:, None])).argmax(-1)
        wrong = (guess[:, :-1] != ids[:, 1:]) & (said[:, 1:] > 0)
        bad = set(owners[:, 1:][wrong].tolist())
        for owner in range(1, num_packed + 1):
            right[start + owner - 1] = owner not in bad
        start += num_packed
    cells: dict[str, list[bool]] = defaultdict(list)
    for one, ok in zip(instances, right, strict=True):
        cells[f"{one.skill}/{one.level}"].append(ok)
    return {cell: sum(values) / len(values) for cell, values in cells.items()}


def summary(cells: dict[str, float]) -> str:
    """`easy 97 hard 41 | arithmetic 100 98 40 12 | ...` in per cent."""
    halves = []
    for half, levels in (("easy", "12"), ("hard", "34")):
        values = [a for cell, a in cells.items() if cell[-1] in levels]
        halves.append(f"{half} {100 * sum(values) / len(values):.0f}")
    skills: dict[str, list[str]] = defaultdict(list)
    for cell, a in cells.items():
        skills[cell.split("/")[0]].append(f"{100 * a:.0f}")
    return " ".join(halves) + " | " + " | ".join(f"{skill} {' '.join(v)}" for skill, v in skills.items())
