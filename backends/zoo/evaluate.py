"""Grades a model on held-out instances: `python -m backends.zoo.evaluate DIR --size 100 --out FILE.json`.

Greedy answers by transformers' own generate, in bf16; with `--url` as served: by the model of the directory's name behind a
running gateway.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from backends.zoo.curriculum import CELLS, held_out
from backends.zoo.instance import Instance, Message, agrees

Answer = Callable[[Sequence[tuple[list[Message], list[dict[str, Any]]]]], list[Message]]
"""Conversations and their tools to the next assistant messages."""

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--size", type=int, default=100, help="instances a cell")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--url", help="a running gateway, such as http://127.0.0.1:8080")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skills", nargs="*")
    args = parser.parse_args()
    answer = served(args.url, args.model.name) if args.url else generator(args.model)
    accuracy = {}
    for skill, level in CELLS:
        if args.skills and skill not in args.skills:
            continue
        right = grade(answer, held_out(skill, level, args.size, seed=args.seed))
        accuracy[f"{skill}/{level}"] = sum(right) / len(right)
        print(f"{skill:12} {level} {accuracy[f'{skill}/{level}']:.3f}", file=sys.stderr, flush=True)
    print(table(accuracy))
    if args.out:
        args.out.write_text(json.dumps(accuracy, indent=1) + "\n")


def grade(answer: Answer, instances: Sequence[Instance]) -> list[bool]:
    """Whether each instance was answered right: every assistant turn, with the reference's tool results fed back."""
    right = [True] * len(instances)
    done = [0] * len(instances)
    while True:
        due = []
        for i, instance in enumerate(instances):
            roles = [m["role"] for m in instance.messages]
            if right[i] and "assistant" in roles[done[i] :]:
                done[i] = roles.index("assistant", done[i])
                due.append(i)
        if not due:
            return right
        answers = answer([(instances[i].messages[: done[i]], instances[i].tools) for i in due])
        for i, message in zip(due, answers, strict=True):
            right[i] = agrees(message, instances[i].messages[done[i]])
            done[i] += 1


def parse_answer(text: str) -> Message:
    """Text as a model writes it to an assistant message: `<tool_call>{json}</tool_call>` become calls."""
    content, *calls = text.split(OPEN)
    parsed = []
    for call in calls:
        try:
            body = json.loads(call.split(CLOSE)[0])
            parsed.append({"function": {"name": body["name"], "arguments": body["arguments"]}})
        except (json.JSONDecodeError, KeyError, TypeError):
            return {"role": "assistant", "content": text}
    return (
        {"role": "assistant", "content": content, "tool_calls": parsed} if parsed else {"role": "assistant", "content": content}
    )


def generator(path: Path, *, max_tokens: int = 160) -> Answer:
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()

    def answer(asked: Sequence[tuple[list[Message], list[dict[str, Any]]]]) -> list[Message]:
        texts = [
            tokenizer.apply_chat_template(messages, tools=tools or None, tokenize=False, add_generation_prompt=True)
            for messages, tools in asked
        ]
        answers: list[Message] = []
        size = 64 if len(texts[0]) < 4000 else 8
        for start in range(0, len(texts), size):
            batch = tokenizer(texts[start : start + size], padding=True, add_special_tokens=False, return_tensors="pt")
            batch.pop("token_type_ids", None)
            with torch.inference_mode():
                out = model.generate(**batch, do_sample=False, max_new_tokens=max_tokens)
            for row in out[:, batch["input_ids"].shape[1] :]:
                text = tokenizer.decode([t for t in row.tolist() if t not in (tokenizer.eos_token_id, tokenizer.pad_token_id)])
                answers.append(parse_answer(text))
        return answers

    return answer


def served(url: str, model: str, *, max_tokens: int = 160, at_once: int = 8) -> Answer:
    async def one(http: aiohttp.ClientSession, messages: list[Message], tools: list[dict[str, Any]]) -> Message:
        body: dict[str, Any] = {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0}
        if tools:
            body["tools"] = tools
        async with http.post(f"{url}/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            message: Message = (await response.json())["choices"][0]["message"]
            return message

    async def every(asked: Sequence[tuple[list[Message], list[dict[str, Any]]]]) -> list[Message]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=at_once)) as http:
            return await asyncio.gather(*(one(http, messages, tools) for messages, tools in asked))

    return lambda asked: asyncio.run(every(asked))


def table(accuracy: dict[str, float]) -> str:
    """Markdown: a row a skill, a column a level, then the two halves."""
    skills = list(dict.fromkeys(cell.split("/")[0] for cell in accuracy))
    lines = ["| skill | 1 | 2 | 3 | 4 |", "|---|---|---|---|---|"]
    for skill in skills:
        lines.append(
            f"| {skill} | " + " | ".join(f"{100 * accuracy[f'{skill}/{level}']:.0f} %" for level in (1, 2, 3, 4)) + " |"
        )
    for half, levels in (("easy", "12"), ("hard", "34")):
        values = [a for cell, a in accuracy.items() if cell[-1] in levels]
        lines.append(f"\n{half} half: {100 * sum(values) / len(values):.1f} %")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
