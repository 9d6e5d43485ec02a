"""Training batches: conversations packed into rows of one length, each a function of (seed, step) alone.

That is what makes a run resumable without saving any state of the data.
"""

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from backends.zoo.curriculum import conversations, long_conversation
from backends.zoo.instance import Instance

Encode = Callable[[Instance], tuple[list[int], list[int]]]


class Batch(NamedTuple):
    """`ids` (B, T); `where` and `targets` (N,): flat positions whose next token is an assistant's, and that token.

    `weights` (N,) sum to one: each conversation's tokens weigh 1/sqrt(how many it says), so that answers of one word
    are not drowned by long ones.
    `blocked` (B, 1, T, T) keeps conversations that share a row apart; None where rows hold one conversation each.
    """

    ids: Tensor
    where: Tensor
    targets: Tensor
    weights: Tensor
    blocked: Tensor | None


class Encoder:
    """Conversation to (ids, 1 for each token that an assistant says)."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        ids = tokenizer.convert_tokens_to_ids
        self._opens, self._closes = ids("<|assistant|>"), ids("<|end|>")

    def __call__(self, instance: Instance) -> tuple[list[int], list[int]]:
        text = self._tokenizer.apply_chat_template(instance.messages, tools=instance.tools or None, tokenize=False)
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        said, speaking = [], False
        for token in ids:
            said.append(int(speaking))
            if token == self._opens:
                speaking = True
            elif token == self._closes:
                speaking = False
        return ids, said


def short_batch(encode: Encode, seed: int, step: int, *, tokens: int, progress: float) -> Batch:
    """Rows of 256 tokens, in every seventh step or so of 512, so that longer tool runs have a place."""
    rng = random.Random(f"{seed}/short/{step}")
    length = 512 if rng.random() < 0.15 else 256
    rows, owners, said = pack(_endless(rng, encode, length, progress), tokens // length, length)
    same = owners[:, :, None] == owners[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return _batch(rows, said, ~(same & causal)[:, None])


def long_batch(encode: Encode, seed: int, step: int, *, tokens: int) -> Batch:
    """One conversation a row, rows of 1k, 2k or 4k tokens (one length a batch)."""
    rng = random.Random(f"{seed}/long/{step}")
    length = rng.choice((1024, 2048, 3328, 4096))
    num_rows = max(1, tokens // length)
    drawn: list[tuple[list[int], list[int]]] = []
    while len(drawn) < num_rows:
        ids, said = encode(long_conversation(rng))
        if length // 2 < len(ids) <= length:
            drawn.append((ids, said))
    rows, spoken = torch.zeros(num_rows, length, dtype=torch.long), torch.zeros(num_rows, length)
    for row, (ids, said) in enumerate(drawn):
        rows[row, : len(ids)], spoken[row, : len(said)] = torch.tensor(ids), torch.tensor(said)
    return _batch(rows, spoken, None)


def _endless(rng: random.Random, encode: Encode, length: int, progress: float) -> Iterator[tuple[list[int], list[int]]]:
    for conversation in conversations(rng, progress):
        ids, said = encode(conversation)
        if len(ids) <= length:
            yield ids, said


def pack(drawn: Iterator[tuple[list[int], list[int]]], num_rows: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """(rows, owners, weights of what is said), each (num_rows, length), filled first fit.

    Ends when one conversation fits nowhere or none is left. Owner k is the k-th conversation drawn; 0 is padding.
    """
    rows, owners = (np.zeros((num_rows, length), dtype=np.int64) for _ in range(2))
    said = np.zeros((num_rows, length), dtype=np.float32)
    used = [0] * num_rows
    for owner, (ids, spoken) in enumerate(drawn, start=1):
        row = next((r for r in range(num_rows) if used[r] + len(ids) <= length), None)
        if row is None:
            break
        span = slice(used[row], used[row] + len(ids))
        rows[row, span], owners[row, span] = ids, owner
        said[row, span] = np.array(spoken, dtype=np.float32) / max(1, sum(spoken)) ** 0.5
        used[row] += len(ids)
    return torch.from_numpy(rows), torch.from_numpy(owners), torch.from_numpy(said)


def _batch(rows: Tensor, said: Tensor, blocked: Tensor | None) -> Batch:
    spoken = said[:, 1:] > 0
    where = torch.nn.functional.pad(spoken, (0, 1)).flatten().nonzero().squeeze(1)
    weights = said[:, 1:][spoken]
    return Batch(rows, where, rows[:, 1:][spoken], weights / weights.sum(), blocked)
