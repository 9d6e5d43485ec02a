"""Claim to reach: deciding for a long chain in a large fleet takes 150 us at the median. This says what it takes now, by part.

Method: one core, 1,000 workers of two models, 20,000 live runs of 100,000 tokens; each turn 650 tokens more; random runs.
Parts: `identity` finds the run by its header and keeps its books; `tokenize` encodes the text of the new part with nano's
tokenizer; `names` hashes its pages; `residency` asks what the warm worker holds of the prompt (a walk over all names);
`views` makes the view of every worker; `decide` chooses among all; `queue` pushes and pops one behind 256 others. Verifying
the old part is not inside. Of 64 runs the pages are real, the others' are not kept. Memory is what registry, retention and
keeper hold of an idle run; page names of a prompt and of the residency index come on top and are told apart.
"""

import random
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable
from typing import TypeVar

from backends.prefix import Namer
from backends.wire import PAGE_NAME_BYTES, Cache
from backends.zoo.words import sentence
from benchmarks.report import ROOT, Target, arguments, finish, progress, table
from gateway.routing.decide import decide
from gateway.routing.decision import Question, WorkerView
from gateway.runs.identity import identify
from gateway.runs.keeper import Keeper
from gateway.runs.registry import Runs
from gateway.scheduling.predict import Predictor
from gateway.scheduling.queue import Band, RunQueue, Waiting
from gateway.scheduling.residency import Residency
from gateway.scheduling.retention import Retention
from gateway.text.model_text import ModelText

PAGE, PROMPT, GROWTH = 16, 100_000, 650
REAL_RUNS, WAITING = 64, 256
TENANT = "benchmark"
_CHARS_A_TOKEN = 4

Result = TypeVar("Result")


class Stopwatch:
    """Microseconds by part, one entry a turn."""

    def __init__(self) -> None:
        self.parts: dict[str, list[float]] = defaultdict(list)

    def time(self, part: str, work: Callable[[], Result]) -> Result:
        start = time.perf_counter_ns()
        result = work()
        self.parts[part].append((time.perf_counter_ns() - start) / 1000)
        return result

    def totals(self) -> list[float]:
        return [sum(turn) for turn in zip(*self.parts.values(), strict=True)]


class World:
    """What a gateway of this size knows."""

    def __init__(self, num_workers: int, num_runs: int, num_real: int, rng: random.Random) -> None:
        self.rng = rng
        self.workers = [f"w{number}" for number in range(num_workers)]
        self.predictors = {worker: Predictor() for worker in self.workers}
        self.runs, self.keeper = Runs(num_runs + 1, 900.0), Keeper(Retention(), lambda worker, chain, score: None)
        self.residency, self.queue = Residency(REAL_RUNS * (PROMPT // PAGE) + 1), RunQueue(WAITING + 1)
        self.names: dict[int, list[bytes]] = {}
        for number in range(num_runs):
            self.pause(number)
        for number in range(num_real):
            self.names[number] = [rng.randbytes(PAGE_NAME_BYTES) for _ in range(PROMPT // PAGE)]
            self.residency.apply(self.warm(number), Cache(sequence=0, stored=b"".join(self.names[number]), reset=True))
        for number in range(WAITING):
            self.queue.push(_waiting(-1 - number, rng.randrange(1000)))

    def warm(self, number: int) -> str:
        return self.workers[number % len(self.workers)]

    def pause(self, number: int) -> None:
        """A turn of this run comes and is answered."""
        identity = identify({"x-headway-run-id": f"run-{number}"}, (), tenant=TENANT)
        assert identity
        run, chain = self.runs.touch(identity, tenant=TENANT, now=0.0)
        self.keeper.arrived(chain, 0.0)
        self.runs.opened(run)
        self.runs.dispatched(chain, model="nano", worker=self.warm(number))
        self.keeper.finished(chain, 0.0, finish="tool_calls", tool="bash")
        self.runs.closed(run, final=False, now=0.0)


def main() -> None:
    args = arguments(__doc__).parse_args()
    workers, runs, turns = (100, 1000, 100) if args.quick else (1000, 20_000, 1000)
    rng = random.Random(0)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    idle = World(1, runs, 0, rng)
    per_run = (tracemalloc.get_traced_memory()[0] - before) / runs
    tracemalloc.stop()
    del idle
    progress(f"{per_run:,.0f} bytes an idle run")
    watch = Stopwatch()
    world, text = World(workers, runs, REAL_RUNS, rng), ModelText.from_directory(ROOT / "backends" / "zoo" / "nano")
    for _ in range(turns):
        _turn(world, text, watch)
    parts = {name: _quantiles(values) for name, values in (*watch.parts.items(), ("all", watch.totals()))}
    print(table(("part", "p50 us", "p99 us"), [(name, *values) for name, values in parts.items()]))
    results = {
        "us": {name: {"p50": p50, "p99": p99} for name, (p50, p99) in parts.items()},
        "bytes_per_idle_run": per_run,
        "bytes_of_page_names_per_run": PROMPT // PAGE * (33 + PAGE_NAME_BYTES),
        "workers": workers,
        "runs": runs,
    }
    targets = [
        Target("p50_us", parts["all"][0], "<=", 150.0),
        Target("p99_us", parts["all"][1], "<=", 1000.0),
        Target("bytes_per_idle_run", per_run, "<=", 65_536),
    ]
    finish("decide_scale", results, targets)


def _turn(world: World, text: ModelText, watch: Stopwatch) -> None:
    number = world.rng.choice(list(world.names))
    names, warm = world.names[number], world.warm(number)
    new_text = ""
    while len(new_text) < GROWTH * _CHARS_A_TOKEN:
        new_text += sentence(world.rng) + " "
    watch.time("identity", lambda: world.pause(number))
    ids = watch.time("tokenize", lambda: text.encode(new_text))
    watch.time("names", lambda: _name(names[-1], ids.tobytes()))
    cached = watch.time("residency", lambda: world.residency.cached_tokens(warm, names, PAGE))
    prompt = cached + GROWTH
    question = Question(
        asked="auto",
        candidates=("small", "large"),
        prompt_tokens=dict.fromkeys(world.workers, prompt),
        cached_tokens={warm: cached},
        max_output_tokens=512,
        expected_output_tokens=128.0,
        quality={"small": 0.5, "large": 1.0},
        quality_bar=0.9,
        ttft_slo_s=1.0,
        warm_worker=warm,
        expected_remaining_turns=10.0,
    )
    views = watch.time("views", lambda: [_view(world, number, worker) for number, worker in enumerate(world.workers)])
    watch.time("decide", lambda: decide(question, views, decision_id="d"))
    watch.time("queue", lambda: _through(world.queue))


def _view(world: World, number: int, worker: str) -> WorkerView:
    tier = "small" if number % 2 else "large"
    return world.predictors[worker].view(
        worker=worker,
        model=tier,
        tier=tier,
        healthy=True,
        max_context=200_000,
        usd_per_s=0.001,
        max_sequences=64,
        now=0.0,
    )


def _through(queue: RunQueue) -> None:
    queue.push(_waiting(1, 0))
    queue.pop(lambda item: item.request == 1, now=1.0, prefill_rate=1e6)


def _waiting(request: int, uncached: int) -> Waiting:
    resident = request > 0
    return Waiting(
        request=request,
        tenant=TENANT,
        run=str(request),
        band=Band.AGENT_TURN,
        arrival=0.0,
        deadline=1e9,
        uncached_tokens=uncached,
        resident=resident,
    )


def _name(parent: bytes, tokens: bytes) -> bytes:
    namer = Namer("fingerprint", TENANT)
    for start in range(0, len(tokens) - 4 * PAGE + 1, 4 * PAGE):
        parent = namer.after(parent, tokens[start : start + 4 * PAGE])
    return parent


def _quantiles(values: list[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return ordered[len(ordered) // 2], ordered[int(0.99 * (len(ordered) - 1))]


if __name__ == "__main__":
    main()
