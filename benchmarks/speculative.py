"""Claim: speculation makes an agent faster that works alone; in a full batch it turns itself off and costs nothing.

Method: nano continues held-out transcripts of the lab's tool-calling agents, greedily, from before each of their answers, and
questions of all skills. Four arms: without speculation, with lookup (in the prompt and earlier answers), with pico as the draft
model, and with both. Arms alternate, each round beginning with another; medians of the rounds. Batch 1 and batch 16. No two
rounds have the same prompts, as lookup would know the answers. The baseline is the same engine without speculation. Targets are
for lookup alone, on the agents; for pico the measured ratio is reported.
"""

import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backends.zoo.curriculum import CELLS, held_out
from benchmarks.engine_rig import EngineRig
from benchmarks.report import ROOT, Target, arguments, finish, progress, table

NANO, PICO = ROOT / "backends" / "zoo" / "nano", ROOT / "backends" / "zoo" / "pico"
BATCHES = (1, 16)
WORKLOADS = {"agents": [cell for cell in CELLS if cell[0] == "tools"], "all skills": CELLS}
ROUNDS, PROMPTS, TOKENS = 5, 128, 96


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, default=NANO)
    parser.add_argument("--draft", type=Path, default=PICO)
    args = parser.parse_args()
    rounds, count = (1, 4) if args.quick else (ROUNDS, PROMPTS)
    plain = EngineRig(args.model, kv_tokens=65_536)
    rigs = {
        "off": plain,
        "lookup": EngineRig(args.model, kv_tokens=65_536, lookup=True, served=plain.served),
        "draft": EngineRig(args.model, kv_tokens=65_536, draft=args.draft, served=plain.served),
        "both": EngineRig(args.model, kv_tokens=65_536, lookup=True, draft=args.draft, served=plain.served),
    }
    rows, results, targets = [], dict[str, Any](), []
    for workload, cells in WORKLOADS.items():
        asked = prompts(args.model, cells, count * rounds * len(BATCHES))
        for batch in BATCHES:
            speed: dict[str, list[float]] = {name: [] for name in rigs}
            tallies_before = {name: _tallies(rig) for name, rig in rigs.items()}
            for number in range(rounds):
                some, asked = asked[:count], asked[count:]
                names = list(rigs)
                for name in names[number % len(names) :] + names[: number % len(names)]:
                    speed[name].append(_tokens_per_s(rigs[name], some, batch))
                progress(f"{workload}, batch {batch}, round {number + 1}/{rounds}")
            medians = {name: statistics.median(values) for name, values in speed.items()}
            found = results[f"{workload}, batch {batch}"] = dict[str, Any]()
            for name, rig in rigs.items():
                now = _tallies(rig)
                drafted, accepted = (sum(now[i].values()) - sum(tallies_before[name][i].values()) for i in (0, 1))
                ratio, share = medians[name] / medians["off"], accepted / max(drafted, 1)
                found[name] = {"tokens_per_s": medians[name], "ratio": ratio, "guessed": drafted, "accepted_share": share}
                rows.append((workload, batch, name, medians[name], ratio, drafted, share))
            if workload == "agents":
                targets.append(
                    Target(f"lookup_ratio_batch_{batch}", found["lookup"]["ratio"], ">=", 1.5 if batch == 1 else 0.97)
                )
    print(table(("asked", "batch", "guesses", "tokens/s", "ratio", "guessed", "accepted"), rows))
    finish("speculative", results, targets)


def _tallies(rig: EngineRig) -> tuple[dict[str, int], dict[str, int]]:
    """Return drafted and accepted tokens by source."""
    speculator = rig.engine.speculator
    tallies = {} if speculator is None else speculator.tallies
    return {k: v.drafted for k, v in tallies.items()}, {k: v.accepted for k, v in tallies.items()}


def prompts(model: Path, cells: Sequence[tuple[str, int]], count: int) -> list[list[int]]:
    """Return transcripts up to an answer, of any turn."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    found: list[list[int]] = []
    drawn = [transcript for cell in cells for transcript in held_out(*cell, -(-count // len(cells)), seed=5)]
    random.Random(0).shuffle(drawn)
    for transcript in drawn:
        options = {"tools": transcript.tools or None, "add_generation_prompt": True, "tokenize": True, "return_dict": False}
        turns = [i for i, message in enumerate(transcript.messages) if message["role"] == "assistant"]
        found += [tokenizer.apply_chat_template(transcript.messages[:turn], **options) for turn in turns]
    return found[:count]


def _tokens_per_s(rig: EngineRig, asked: list[list[int]], batch: int) -> float:
    """Return the decode rate. Prompts are resident after the first pass, so only the second is timed."""
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
