"""Claim: with a device pool of a third of the working set, a host tier makes the first token come 3 times sooner.

Method: alternating conversations on nano. Each is at least a third of the model's context, so that it has left the pool before
its next turn. The same turns run with the host tier on and off. TTFT is from the submit; medians over all turns but the first
of each conversation. Both engines run in this process and alternate turn by turn.
"""

import random
import statistics
from pathlib import Path

from benchmarks.engine_rig import PAGE, EngineRig
from benchmarks.report import ROOT, Target, arguments, finish, progress, table

NANO = ROOT / "backends" / "zoo" / "nano"
CHATS, TURNS = 6, 4


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, default=NANO)
    parser.add_argument("--tokens", type=int, default=1536, help="of a conversation at first")
    args = parser.parse_args()
    chats, turns, tokens = (3, 2, 192) if args.quick else (CHATS, TURNS, args.tokens)
    working_set = chats * (tokens + turns * 2 * PAGE)
    pool = max(working_set // 3, tokens + turns * 2 * PAGE + 4 * PAGE)
    off = EngineRig(args.model, kv_tokens=pool)
    rigs = {"off": off, "on": EngineRig(args.model, kv_tokens=pool, host_kv_tokens=2 * working_set, served=off.served)}
    rng = random.Random(0)
    vocabulary = off.served.vocab_size
    said = [rng.choices(range(3, vocabulary), k=tokens) for _ in range(chats)]
    first_ms: dict[str, list[float]] = {name: [] for name in rigs}
    cached = dict.fromkeys(rigs, 0)
    for turn in range(turns):
        for chat in said:
            for name, rig in rigs.items():
                answer = rig.ask([chat], 4)
                if turn:
                    first_ms[name].append(answer.first_s * 1e3)
                    cached[name] += answer.cached
            chat += rng.choices(range(3, vocabulary), k=PAGE)
        progress(f"turn {turn + 1}/{turns}")
    medians = {name: statistics.median(values) for name, values in first_ms.items()}
    print(table(("host tier", "TTFT ms", "cached tokens"), [(name, medians[name], cached[name]) for name in rigs]))
    speedup = medians["off"] / medians["on"]
    results = {"ttft_off_ms": medians["off"], "ttft_on_ms": medians["on"], "speedup": speedup, "pool_tokens": pool}
    finish("kv_tiers", results, [Target("ttft_speedup", speedup, ">=", 3.0)])


if __name__ == "__main__":
    main()
