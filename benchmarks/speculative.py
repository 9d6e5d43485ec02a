"""Claim: guesses make an agent faster that works alone, and in a full batch, where they turn themselves off, cost nothing.

Method: nano continues held-out transcripts of the lab, greedily, from before each answer; the same prompts without guesses,
with prompt lookup, with pico drafting, and with both, alternating, medians of the rounds. Batch 1 and batch 16. The baseline
is the same engine without guesses; lookup alone has targets, of pico the measured ratio is told.
"""

import statistics
from pathlib import Path
from typing import Any

from backends.zoo.curriculum import CELLS, held_out
from benchmarks.engine_rig import EngineRig
from benchmarks.report import ROOT, Target, arguments, finish, progress, table

NANO, PICO = ROOT / "backends" / "zoo" / "nano", ROOT / "backends" / "zoo" / "pico"
BATCHES = (1, 16)
ROUNDS, PROMPTS, TOKENS = 5, 32, 96


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, default=NANO)
    parser.add_argument("--draft", type=Path, default=PICO)
    args = parser.parse_args()
    rounds, count = (1, 4) if args.quick else (ROUNDS, PROMPTS)
    asked = prompts(args.model, count)
    plain = EngineRig(args.model, kv_tokens=65_536)
    rigs = {
        "off": plain,
        "lookup": EngineRig(args.model, kv_tokens=65_536, lookup=True, served=plain.served),
        "draft": EngineRig(args.model, kv_tokens=65_536, draft=args.draft, served=plain.served),
        "both": EngineRig(args.model, kv_tokens=65_536, lookup=True, draft=args.draft, served=plain.served),
    }
    rows, results, targets = [], dict[str, Any](), []
    for batch in BATCHES:
        speed: dict[str, list[float]] = {name: [] for name in rigs}
        before = {name: _tallies(rig) for name, rig in rigs.items()}
        for number in range(rounds):
            for name, rig in rigs.items():
                speed[name].append(_tokens_per_s(rig, asked, batch))
            progress(f"batch {batch}, round {number + 1}/{rounds}")
        medians = {name: statistics.median(values) for name, values in speed.items()}
        found = results[f"batch_{batch}"] = dict[str, Any]()
        for name, rig in rigs.items():
            now = _tallies(rig)
            drafted, accepted = (sum(now[i].values()) - sum(before[name][i].values()) for i in (0, 1))
            ratio, share = medians[name] / medians["off"], accepted / max(drafted, 1)
            found[name] = {"tokens_per_s": medians[name], "ratio": ratio, "guessed": drafted, "accepted_share": share}
            rows.append((batch, name, medians[name], ratio, drafted, share))
        targets.append(Target(f"lookup_ratio_batch_{batch}", found["lookup"]["ratio"], ">=", 1.5 if batch == 1 else 0.97))
    print(table(("batch", "guesses", "tokens/s", "ratio", "guessed", "accepted"), rows))
    finish("speculative", results, targets)


def _tallies(rig: EngineRig) -> tuple[dict[str, int], dict[str, int]]:
    """Guessed and accepted tokens by source."""
    speculator = rig.engine.speculator
    tallies = {} if speculator is None else speculator.tallies
    return {k: v.drafted for k, v in tallies.items()}, {k: v.accepted for k, v in tallies.items()}


def prompts(model: Path, count: int) -> list[list[int]]:
    """Transcripts up to an answer, from every skill in turn."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    found: list[list[int]] = []
    for skill, level in CELLS * count:
        if len(found) == count:
            break
        drawn = held_out(skill, level, 1, seed=len(found))[0]
        last = max(i for i, message in enumerate(drawn.messages) if message["role"] == "assistant")
        options = {"tools": drawn.tools or None, "add_generation_prompt": True, "tokenize": True, "return_dict": False}
        found.append(tokenizer.apply_chat_template(drawn.messages[:last], **options))
    return found


def _tokens_per_s(rig: EngineRig, asked: list[list[int]], batch: int) -> float:
    """Decoding alone: prompts are resident after the first time, so it is asked twice and the second time counts."""
    tokens, spent_s = 0, 0.0
    for start in range(0, len(asked), batch):
        group = asked[start : start + batch]
        rig.ask(group, 1)
        answer = rig.ask(group, TOKENS, ignore_eos=False)
        tokens += answer.tokens
        spent_s += answer.all_s
    return tokens / spent_s


if __name__ == "__main__":
    main()
