"""Claim: prompt lookup makes an agent faster that works alone, and in a full batch, where it turns itself off, costs nothing.

Method: nano continues held-out transcripts of the lab, greedily, from before each answer; the same prompts with and without
guesses, alternating, medians of the rounds. Batch 1 and batch 16. The baseline is the same engine without guesses.
"""

import statistics
from pathlib import Path
from typing import Any

from backends.zoo.curriculum import CELLS, held_out
from benchmarks.engine_rig import EngineRig
from benchmarks.report import ROOT, Target, arguments, finish, progress, table

NANO = ROOT / "backends" / "zoo" / "nano"
BATCHES = (1, 16)
ROUNDS, PROMPTS, TOKENS = 5, 32, 96


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, default=NANO)
    args = parser.parse_args()
    rounds, count = (1, 4) if args.quick else (ROUNDS, PROMPTS)
    asked = prompts(args.model, count)
    plain = EngineRig(args.model, kv_tokens=65_536)
    rigs = {"off": plain, "lookup": EngineRig(args.model, kv_tokens=65_536, speculates=True, served=plain.served)}
    rows, results, targets = [], dict[str, Any](), []
    for batch in BATCHES:
        speed: dict[str, list[float]] = {name: [] for name in rigs}
        for number in range(rounds):
            for name, rig in rigs.items():
                speed[name].append(_tokens_per_s(rig, asked, batch))
            progress(f"batch {batch}, round {number + 1}/{rounds}")
        medians = {name: statistics.median(values) for name, values in speed.items()}
        ratio = medians["lookup"] / medians["off"]
        rows.append((batch, medians["off"], medians["lookup"], ratio))
        results[f"batch_{batch}"] = {**medians, "ratio": ratio}
        targets.append(Target(f"lookup_ratio_batch_{batch}", ratio, ">=", 1.5 if batch == 1 else 0.97))
    engine = rigs["lookup"].engine
    results["accepted"] = engine.num_accepted / max(engine.num_drafted, 1)
    print(table(("batch", "off tokens/s", "lookup tokens/s", "ratio"), rows))
    finish("speculative", results, targets)


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
