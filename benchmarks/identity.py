"""Claim: with all ids withheld, a chain is recognised by its repeated content, and never merged with another run.

Tool loops: held-out tool questions are sent to nano through the HTTP API, four at once. The only ids sent are those of tool
calls that the gateway minted itself. Text: calls of the public agent traces in order of time, without their session ids;
`PromptTextIndex` returns the chain that each continues. Linked right: a call that begins with content its session sent before
is assigned to a chain of that session, any other is new. Wrong merge: assigned to a chain of another session. A call without
earlier content (a dialogue's other side) can only be new; their number is reported.
"""

import gzip
import json
import sys
from collections import defaultdict
from typing import Any

from benchmarks.identity_loops import run_loops
from benchmarks.report import Target, arguments, finish, table
from gateway.runs.prompt_text_index import PromptTextIndex

TENANT = "benchmark"


def main() -> None:
    args = arguments(__doc__).parse_args()
    by_workload: dict[str, list[dict[str, Any]]] = defaultdict(list)
    path = args.data / "traces" / "swe_agent_text.jsonl.gz"
    if not path.exists():
        sys.exit(f"there is no trace at {path}: set --data to the folder of public traces (docs/runs.md names their source)")
    with gzip.open(path, "rt") as lines:
        for line in lines:
            call = json.loads(line)
            by_workload[call["workload"]].append(call)
    results = {name: _graded(sorted(calls, key=lambda call: call["timestamp"])) for name, calls in by_workload.items()}
    columns = list(next(iter(results.values())))
    print(table(("workload", *columns), [(name, *one.values()) for name, one in results.items()]))
    loops = run_loops(1 if args.quick else 12)
    print(table(("tool loops", "calls back", "linked", "wrong merges"), [loops]))
    targets = [
        Target("tool_loops_linked", loops.linked / max(1, loops.calls_back), ">=", 1.0),
        Target("tool_loops_wrong_merges", loops.wrong_merges, "<=", 0),
    ]
    targets += [Target(f"{name}_wrong_merges", one["wrong_merges"], "<=", 0) for name, one in results.items()]
    if "miniswe" in results:
        targets.append(Target("miniswe_linked_right", results["miniswe"]["linked_right"], ">=", 0.99))
    finish("identity", {"text": results, "tool_loops": loops._asdict()}, targets)


def _graded(calls: list[dict[str, Any]]) -> dict[str, float]:
    blocks = PromptTextIndex()
    session_of: dict[str, str] = {}
    sent: dict[str, list[str]] = defaultdict(list)
    right = wrong = linked = continues = 0
    for number, call in enumerate(calls):
        session, text = call["session_id"], call["input"]
        found = blocks.find(text, tenant=TENANT)
        goes_on = any(text.startswith(before) for before in sent[session])
        continues += goes_on
        linked += found is not None and session_of[found] == session
        wrong += found is not None and session_of[found] != session
        right += session_of[found] == session if found is not None else not goes_on
        chain = found if found is not None and session_of[found] == session else f"chain-{number}"
        session_of[chain] = session
        blocks.claim(chain, text, tenant=TENANT)
        sent[session].append(text)
    return {
        "calls": len(calls),
        "that_continue": continues,
        "linked": linked,
        "wrong_merges": wrong,
        "linked_right": right / len(calls),
        "linked_of_those_that_continue": linked / max(1, continues),
    }


if __name__ == "__main__":
    main()
