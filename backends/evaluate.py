"""What a quantization, a KV type or another checkpoint costs in accuracy, measured against the model that it stands in for.

`python -m backends.evaluate MODEL --against MODEL [--linear int4] [--out REPORT.json]`: lab skills by greedy answers,
perplexity of the same answers, and how often both choose the same next token of the reference's answers.
"""

import argparse
import json
import math
import random
import sys
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from backends.config import KvDtype, LinearChoice
from backends.engine.engine import Engine
from backends.engine.request_limits import RequestLimits
from backends.models.linear import LinearChooser
from backends.models.loader import open_model
from backends.quant.weight import UnsupportedCheckpoint
from backends.runners.native_library import resolve_library
from backends.runners.registry import cpu_runner
from backends.wire import Sampling, Submit

PAGE, CONTEXT, BATCH, FIRST_LETTER = 16, 4096, 16, 0x10000
MIN_AGREEMENT_PROMPTS = 8


class Letters:
    """One character a token, so that a text from the engine is its tokens."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(chr(FIRST_LETTER + token) for token in ids)


class Subject:
    """A model opened to be evaluated, in float32 on CPU unless its kernels say otherwise."""

    def __init__(self, directory: Path, *, linear: LinearChoice, kv_dtype: KvDtype) -> None:
        self.name = directory.name
        library = resolve_library("auto", device="cpu").value
        chooser = LinearChooser(linear, torch.float32, "cpu", library)
        self.served = served = open_model(directory, chooser, dtype=torch.float32, device="cpu")
        self.context = min(served.max_positions, CONTEXT)
        pages = -(-self.context // PAGE) * 4
        self._kv = served.kv(num_pages=pages, page_size=PAGE, dtype=torch.float32, device="cpu", int8=kv_dtype == "int8")
        self._runner = cpu_runner(served.model, self._kv, dtype=torch.float32, library=library)
        self._limits = RequestLimits(
            max_context=self.context,
            vocab_size=served.vocab_size,
            num_pages=pages,
            page_size=PAGE,
            max_sequences=BATCH,
            prefill_tokens=512,
            eos_tokens=frozenset(served.eos_tokens),
            kv_bytes=1,
            fingerprint="evaluate",
        )

    def greedy(self, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        """Up to `count` tokens after each, the end token left out."""
        engine = Engine(self._runner, Letters(), self._limits, clock_ns=time.perf_counter_ns, rng=random.Random(0))
        said: list[list[int]] = [[] for _ in prompts]
        for number, prompt in enumerate(prompts):
            kept = array("I", prompt[-(self.context - count) :])
            engine.submit("me", Submit(request=number, prompt=kept.tobytes(), sampling=Sampling(max_tokens=count)))
            while len(engine.scheduler.waiting) >= BATCH // 2:
                engine.step()
        while engine.has_work:
            engine.step()
        for piece in engine.take_output().pieces.get("me", []):
            said[piece.request] += [ord(letter) - FIRST_LETTER for letter in piece.text]
        return [[token for token in tokens if token not in self._limits.eos_tokens] for tokens in said]

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Of every position, (len(ids), vocabulary)."""
        return self._runner.all_logits(ids, list(range(-(-len(ids) // PAGE))))


class Comparison(NamedTuple):
    """`agreement` is the share of the reference's greedy tokens that the model would choose too, given what came before."""

    perplexity: float
    perplexity_against: float
    agreement: float
    tokens: int


class Sample(NamedTuple):
    """`prompt` begins `whole`; what is behind it is scored."""

    prompt: list[int]
    whole: list[int]


def compare(model: Subject, against: Subject, samples: Sequence[Sample], count: int) -> Comparison:
    losses = [0.0, 0.0]
    scored = 0
    for prompt, whole in samples:
        cut, first = whole[: model.context], len(prompt) - 1
        targets = torch.tensor(cut[first + 1 :])
        for place, subject in enumerate((model, against)):
            logits = subject.logits(cut)[first:-1]
            losses[place] += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
        scored += len(targets)
    prompts = [sample.prompt for sample in samples]
    same = chosen = 0
    for prompt, answer in zip(prompts, against.greedy(prompts, count), strict=True):
        if answer:
            found = model.logits(prompt + answer)[len(prompt) - 1 : -1].argmax(-1).tolist()
            same += sum(a == b for a, b in zip(found, answer, strict=True))
            chosen += len(answer)
    perplexities = [math.exp(loss / max(scored, 1)) for loss in losses]
    return Comparison(perplexities[0], perplexities[1], same / max(chosen, 1), scored)


def lab_skills(subject: Subject, tokenizer: Any, size: int, seed: int) -> dict[str, float]:
    """Accuracy on held-out instances, by skill and level."""
    from backends.zoo.curriculum import CELLS, held_out
    from backends.zoo.evaluate import grade, parse_answer

    def answer(asked: Sequence[tuple[list[dict[str, Any]], list[dict[str, Any]]]]) -> list[dict[str, Any]]:
        prompts = [_rendered(tokenizer, messages, tools) for messages, tools in asked]
        return [parse_answer(tokenizer.decode(ids)) for ids in subject.greedy(prompts, 160)]

    found = {}
    for skill, level in CELLS:
        right = grade(answer, held_out(skill, level, size, seed=seed))
        found[f"{skill}/{level}"] = sum(right) / len(right)
        print(f"{subject.name}: {skill:12} {level} {found[f'{skill}/{level}']:.2f}", file=sys.stderr, flush=True)
    return found


def _rendered(
    tokenizer: Any, messages: list[dict[str, Any]], tools: list[dict[str, Any]], *, answered: bool = False
) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(
        messages, tools=tools or None, add_generation_prompt=not answered, tokenize=True, return_dict=False
    )
    return ids


def _lab_samples(tokenizer: Any, size: int, seed: int) -> list[Sample]:
    """Held-out conversations from their first answer on."""
    from backends.zoo.curriculum import CELLS, held_out

    drawn = [one for skill, level in CELLS for one in held_out(skill, level, max(1, size // 4), seed=seed)]
    texts = [_rendered(tokenizer, one.messages, one.tools, answered=True) for one in drawn]
    firsts = [next(i for i, message in enumerate(one.messages) if message["role"] == "assistant") for one in drawn]
    prompts = [_rendered(tokenizer, one.messages[:end], one.tools) for one, end in zip(drawn, firsts, strict=True)]
    return [Sample(prompt, whole) for prompt, whole in zip(prompts, texts, strict=True)]


def _file_samples(tokenizer: Any, path: Path, context: int) -> list[Sample]:
    """A text cut into pieces of half a context at most, their first quarters as prompts."""
    ids = tokenizer(path.read_text(), add_special_tokens=False)["input_ids"]
    size = min(context // 2, max(len(ids) // MIN_AGREEMENT_PROMPTS, 8))
    pieces = [ids[i : i + size] for i in range(0, len(ids), size) if len(ids[i : i + size]) > 3]
    return [Sample(piece[: max(1, len(piece) // 4)], piece) for piece in pieces]


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    from transformers import AutoTokenizer

    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.against)
    model = Subject(args.model, linear=args.linear, kv_dtype=args.kv_dtype)
    against = Subject(args.against, linear="float32", kv_dtype="auto")
    if model.served.vocab_size != against.served.vocab_size:
        raise UnsupportedCheckpoint(
            f"{args.model} has {model.served.vocab_size:,} tokens and {args.against} {against.served.vocab_size:,}: "
            "only models of one tokenizer can be compared"
        )
    if not args.text and not tokenizer.chat_template:
        raise UnsupportedCheckpoint(f"{args.against} has no chat template: name a text with --text")
    samples = _file_samples(tokenizer, args.text, model.context) if args.text else _lab_samples(tokenizer, args.size, args.seed)
    found = compare(model, against, samples, args.count)
    report: dict[str, Any] = {
        "model": str(args.model),
        "against": str(args.against),
        "linear": args.linear,
        "kv_dtype": args.kv_dtype,
        "tokens": found.tokens,
        "perplexity": found.perplexity,
        "perplexity_against": found.perplexity_against,
        "perplexity_delta": found.perplexity / found.perplexity_against - 1,
        "greedy_agreement": found.agreement,
    }
    if not args.text:
        report["skills"] = lab_skills(model, tokenizer, args.size, args.seed)
        report["skills_against"] = lab_skills(against, tokenizer, args.size, args.seed)
        report["skills_delta"] = _mean(report["skills"]) - _mean(report["skills_against"])
    return report


def _mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values)


def shown(report: dict[str, Any]) -> str:
    lines = [
        f"{report['model']} ({report['linear']}, KV {report['kv_dtype']}) against {report['against']}",
        f"perplexity        {report['perplexity']:.4f} against {report['perplexity_against']:.4f} "
        f"({100 * report['perplexity_delta']:+.2f} %) over {report['tokens']:,} tokens",
        f"greedy agreement  {100 * report['greedy_agreement']:.2f} %",
    ]
    if "skills" in report:
        mine, theirs = _mean(report["skills"]), _mean(report["skills_against"])
        lines.append(f"lab skills        {mine:.1%} against {theirs:.1%} ({100 * report['skills_delta']:+.1f} points)")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="headway evaluate", description=__doc__)
    made.add_argument("model", type=Path, help="a directory of a causal LM")
    made.add_argument("--against", type=Path, required=True, help="the model it stands in for, computed in float32")
    made.add_argument("--linear", choices=get_args(LinearChoice), default="auto", help="kernel of the model's matrices")
    made.add_argument("--kv-dtype", choices=get_args(KvDtype), default="auto")
    made.add_argument("--text", type=Path, help="a text to score instead of lab conversations; lab skills are then left out")
    made.add_argument("--size", type=int, default=20, help="lab instances a cell")
    made.add_argument("--count", type=int, default=32, help="greedy tokens a prompt")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--out", type=Path, help="the report, as JSON")
    return made


def main() -> None:
    args = parser().parse_args()
    try:
        report = evaluate(args)
    except (ValueError, OSError) as error:
        sys.exit(f"headway evaluate: {error}")
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(shown(report))


if __name__ == "__main__":
    main()
