"""Trains the tokenizer that pico and nano share and writes it with its chat template.

Digits are single tokens (arithmetic needs places), words keep their leading blank, everything falls back to bytes.
"""

import json
import random
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from backends.zoo.curriculum import conversations

VOCAB_SIZE = 1536
PAD, BOS, END = "<|pad|>", "<|bos|>", "<|end|>"
SPECIAL = (PAD, BOS, END, "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
MARKS = ("<tool_call>", "</tool_call>")
"""Tokens of their own that stay visible in decoded text: the tool-call parser looks for them."""

TEMPLATE = Path(__file__).parent / "chat_template.jinja"
_PIECES = r"\n| ?\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s"
_POSITIONS = 4096


def train(num_conversations: int = 20_000) -> PreTrainedTokenizerFast:
    rng = random.Random("tokenizer")
    texts = [_plain_text(instance.messages, instance.tools) for instance in islice(conversations(rng), num_conversations)]
    inner = _untrained()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(t, normalized=False, special=True) for t in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    inner.add_tokens([AddedToken(t, normalized=False) for t in MARKS])
    return _wrap(inner)


def _untrained() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        model_max_length=_POSITIONS,
        chat_template=TEMPLATE.read_text(),
        clean_up_tokenization_spaces=False,
    )


def _plain_text(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
    """What the merges should be learned from: contents and calls, without the template's marks."""
    parts = [str(m["content"]) for m in messages if m.get("content")]
    for message in messages:
        for call in message.get("tool_calls") or []:
            parts.append(f'{{"name": {json.dumps(call["function"]["name"])}, "arguments": {call["function"]["arguments"]}}}')
    for tool in tools:
        f = tool["function"]
        arguments = ", ".join(f"{name}: string" for name in f["parameters"]["properties"])
        parts.append(f"Tools:\n- {f['name']}({arguments}): {f['description']}")
    return "\n".join(parts)


if __name__ == "__main__":
    train().save_pretrained(sys.argv[1])
