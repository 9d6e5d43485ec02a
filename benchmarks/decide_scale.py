"""Claim to reach: deciding for a long chain in a large fleet takes 150 us at the median. It reports the current time, by part.

Method: one core, 1,000 workers of two models, 20,000 live runs of 100,000 tokens; each turn adds 650 tokens; runs are random.
Parts: `identity` finds the run by its header and updates the registry. `tokenize` encodes the new text with nano's tokenizer.
`names` hashes its pages. `residency` finds the workers that hold most of the prompt. `views` rebuilds changed worker views
(three a turn). `shortlist` selects candidates, `decide` chooses among them. `queue` pushes and pops one request behind 256
others. Outside the sum: `full_scan` decides among all workers, on every tenth turn, and must give the same result.
`tokenizer_alone` is the library's fastest call for the same text, the floor without a word cache. The text is prose of few
words, all of them soon cached; `tokenize_code` and `tokenizer_alone_code` are pieces of 2,600 characters of public agents'
messages, each tokenized for the first time. Turns follow each other directly; for `all_cold` the core reads and writes four
megabytes of other memory between them. The request is as under the default policy, with a price for a missed SLO and one for a
worse answer. Times are CPU time of the process, as the machine may do other work. Verifying the old part, and the gateway's
tables by worker (which prompt goes to which), are not included. Memory is that of registry, retention, publisher and the
residency index for an idle run whose pages are on one worker. Page hashes of chains' last prompts are bounded separately, by
their text.
"""

import gzip
import json
import random
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from backends.wire import PAGE_HASH_BYTES, Cache
from backends.zoo.vocabulary import sentence
from benchmarks.report import ROOT, Target, arguments, finish, progress, table
from gateway.fleet.fleet import MAX_PAGES
from gateway.fleet.worker_views import WorkerViews
from gateway.policy.worker_rates import WorkerRates
from gateway.routing.decide import decide
from gateway.routing.decision import RoutingRequest, WorkerView
from gateway.runs.identity import identify
from gateway.runs.registry import RunRegistry
from gateway.runs.retention_publisher import RetentionPublisher
from gateway.scheduling.kv_index import KvIndex
from gateway.scheduling.latency_model import COLD, LOAD_IS_FRESH_S, LatencyPredictor
from gateway.scheduling.request_queue import Band, QueuedRequest, RequestQueue
from gateway.scheduling.retention import Retention
from gateway.text.model_text import ModelText
from gateway.text.page_hashes import PageHashes

PAGE, PROMPT, GROWTH = 16, 100_000, 650
REAL_RUNS, WAITING = 64, 256
BETWEEN_BYTES = 2 * 2**20
"""Bytes read and written between turns for `all_cold`: twice a core's own caches."""
_NEXT = bytes((value + 1) % 256 for value in range(256))
OUTSIDE = ("full_scan", "tokenizer_alone", "tokenize_code", "tokenizer_alone_code")
"""Parts reported beside the sum."""
TENANT = "benchmark"
_CHARS_A_TOKEN = 4
_PIECE_CHARS = 2_600

Result = TypeVar("Result")


class Stopwatch:
    """Microseconds by part, one entry a turn."""

    def __init__(self) -> None:
        self.parts: dict[str, list[float]] = defaultdict(list)

    def time(self, part: str, work: Callable[[], Result]) -> Result:
        start = time.process_time_ns()
        result = work()
        self.parts[part].append((time.process_time_ns() - start) / 1000)
        return result

    def totals(self) -> list[float]:
        counted = [values for name, values in self.parts.items() if name not in OUTSIDE]
        return [sum(turn) for turn in zip(*counted, strict=True)]


class World:
    """State of a gateway of this size."""

    def __init__(self, num_workers: int, num_runs: int, num_real: int, rng: random.Random) -> None:
        self.rng = rng
        self.workers = [f"w{number}" for number in range(num_workers)]
        self.predictors = {
            worker: LatencyPredictor(_learned(rng), changed=partial(self.touch, worker)) for worker in self.workers
        }
        self.runs, self.retention = (
            RunRegistry(num_runs + 1, 900.0),
            RetentionPublisher(Retention(), lambda worker, chain, score: None),
        )
        self.kv_index, self.queue = KvIndex(MAX_PAGES), RequestQueue(WAITING + 1)
        self.worker_views = WorkerViews(self.workers, self.view, LOAD_IS_FRESH_S)
        self.names: dict[int, PageHashes] = {}
        self.prompt = bytearray(4 * PROMPT)
        for number in range(num_runs):
            self.pause(number)
        for number in range(num_real):
            self.names[number] = PageHashes(rng.randbytes(PROMPT // PAGE * PAGE_HASH_BYTES))
            self.store(number, self.names[number])
        for number in range(WAITING):
            self.queue.push(_waiting(-1 - number, rng.randrange(1000)))

    def warm(self, number: int) -> str:
        return self.workers[number % len(self.workers)]

    def store(self, number: int, page_hashes: PageHashes) -> None:
        worker = self.warm(number)
        sequence = self.kv_index.sequence(worker) + 1
        self.kv_index.apply(worker, Cache(sequence=sequence, stored=page_hashes.leading(len(page_hashes)), reset=sequence == 0))

    def touch(self, worker: str) -> None:
        self.worker_views.touch(worker)

    def view(self, worker: str, now: float) -> WorkerView:
        tier = "small" if int(worker[1:]) % 2 else "large"
        return self.predictors[worker].view(
            worker=worker,
            model=tier,
            tier=tier,
            healthy=True,
            max_context=200_000,
            usd_per_s=0.001,
            max_sequences=64,
            now=now,
        )

    def pause(self, number: int) -> None:
        """Record a turn of this run and its answer."""
        identity = identify({"x-headway-run-id": f"run-{number}"}, (), tenant=TENANT)
        assert identity
        run, chain = self.runs.touch(identity, tenant=TENANT, now=0.0)
        self.retention.arrived(chain, 0.0)
        self.runs.opened(run)
        self.runs.dispatched(chain, model="nano", worker=self.warm(number))
        self.retention.finished(chain, 0.0, finish="tool_calls", tool="bash")
        self.runs.closed(run, final=False, now=0.0)


def _learned(rng: random.Random) -> WorkerRates:
    """Return random rates, so that no two workers have equal speed."""
    return WorkerRates(*(rate * rng.uniform(0.9, 1.1) for rate in COLD))


def main() -> None:
    args = arguments(__doc__).parse_args()
    workers, runs, turns = (100, 1000, 100) if args.quick else (1000, 20_000, 1000)
    rng = random.Random(0)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    idle = World(1, runs, 0, rng)
    per_run = (tracemalloc.get_traced_memory()[0] - before) / runs
    del idle
    before = tracemalloc.get_traced_memory()[0]
    kv_index = KvIndex(MAX_PAGES // 100)
    for number in range(100):
        joined = rng.randbytes(PROMPT // PAGE * PAGE_HASH_BYTES)
        kv_index.apply(f"w{number}", Cache(sequence=0, stored=joined, reset=True))
    of_index = (tracemalloc.get_traced_memory()[0] - before) / len(kv_index) * MAX_PAGES / runs
    tracemalloc.stop()
    del kv_index
    per_run += of_index
    progress(f"{per_run:,.0f} bytes an idle run")
    watch = Stopwatch()
    world, text = World(workers, runs, REAL_RUNS, rng), ModelText.from_directory(ROOT / "backends" / "zoo" / "nano")
    new_texts = [_new_text(text, rng) for _ in range(turns)]
    for turn, new_text in enumerate(new_texts):
        _turn(world, text, watch, turn, new_text)
    cold, elsewhere = Stopwatch(), bytearray(BETWEEN_BYTES)
    for turn, new_text in enumerate(new_texts):
        _turn(world, text, cold, turns + turn, new_text)
        elsewhere = elsewhere.translate(_NEXT)
    for new_text in new_texts:
        assert watch.time("tokenizer_alone", partial(alone, text, new_text)) == list(text.encode(new_text))
    _read_code(args.data / "traces" / "swe_agent_text.jsonl.gz", text, watch, most=turns)
    parts = {name: _quantiles(values) for name, values in (*watch.parts.items(), ("all", watch.totals()))}
    parts["all_cold"] = _quantiles(cold.totals())
    print(table(("part", "p50 us", "p99 us"), [(name, *values) for name, values in parts.items()]))
    results = {
        "us": {name: {"p50": p50, "p99": p99} for name, (p50, p99) in parts.items()},
        "bytes_per_idle_run": per_run,
        "bytes_of_index_per_run": of_index,
        "bytes_of_kept_names_per_run": PROMPT // PAGE * PAGE_HASH_BYTES,
        "workers": workers,
        "runs": runs,
    }
    targets = [
        Target("p50_us", parts["all"][0], "<=", 150.0),
        Target("p99_us", parts["all"][1], "<=", 1000.0),
        Target("bytes_per_idle_run", per_run, "<=", 65_536),
    ]
    finish("decide_scale", results, targets)


def _turn(world: World, text: ModelText, watch: Stopwatch, turn: int, new_text: str) -> None:
    number = world.rng.choice(list(world.names))
    page_hashes, warm = world.names[number], world.warm(number)
    watch.time("identity", lambda: world.pause(number))
    ids = watch.time("tokenize", lambda: text.encode(new_text))
    # The hashes of the old part are known; those of the new part continue from the last of them.
    world.prompt[4 * PAGE * len(page_hashes) :] = ids.tobytes()
    name = partial(PageHashes.of, world.prompt, page_size=PAGE, fingerprint="fingerprint", cache_salt=TENANT)
    named = watch.time("names", lambda: name(before=page_hashes, num_known=len(page_hashes)))
    holders = watch.time("residency", lambda: world.kv_index.holders(named))
    cached = {worker: pages * PAGE for worker, pages in holders.items()}
    assert cached[warm] > PROMPT - 64 * PAGE
    routing_request = RoutingRequest(
        asked="auto",
        candidates=("small", "large"),
        prompt_tokens=dict.fromkeys(world.workers, PROMPT + GROWTH),
        cached_tokens=cached,
        max_output_tokens=512,
        expected_output_tokens=128.0,
        quality={"small": 0.5, "large": 1.0},
        quality_bar=0.9,
        mistake_cost=1.5,
        ttft_slo_s=1.0,
        miss_penalty_usd=1e-6,
        warm_worker=warm,
        expected_remaining_turns=10.0,
    )
    for worker in (warm, *world.rng.sample(world.workers, 2)):
        world.predictors[worker].submitted(turn, GROWTH)
        world.predictors[worker].first_token(turn)
    watch.time("views", lambda: world.worker_views.refresh(0.0))
    views, fleet_summary = watch.time("shortlist", lambda: world.worker_views.candidates(routing_request, 0.0))
    decision = watch.time("decide", lambda: decide(routing_request, views, decision_id="d", fleet_summary=fleet_summary))
    watch.time("queue", lambda: _through(world.queue))
    if turn % 10 == 0:
        everyone = [world.view(worker, 0.0) for worker in world.workers]
        assert watch.time("full_scan", lambda: decide(routing_request, everyone, decision_id="d")) == decision


def _through(queue: RequestQueue) -> None:
    queue.push(_waiting(1, 0))
    queue.pop(lambda item: item.request == 1, now=1.0, prefill_rate=1e6)


def _waiting(request: int, uncached: int) -> QueuedRequest:
    resident = request > 0
    return QueuedRequest(
        request=request,
        tenant=TENANT,
        run=str(request),
        band=Band.AGENT_TURN,
        arrival=0.0,
        deadline=1e9,
        uncached_tokens=uncached,
        resident=resident,
    )


def _read_code(path: Path, text: ModelText, watch: Stopwatch, *, most: int) -> None:
    """Encode a piece of the text that each public message adds to the previous one in its session."""
    if not path.exists():
        return
    sent: dict[str, str] = {}
    with gzip.open(path, "rt") as lines:
        for line in islice(lines, most):
            call = json.loads(line)
            before, now = sent.get(call["session_id"], ""), call["input"]
            piece = now[len(before) :][:_PIECE_CHARS] if now.startswith(before) else now[:_PIECE_CHARS]
            sent[call["session_id"]] = now + call["output"]
            ids = watch.time("tokenize_code", partial(text.encode, piece))
            assert watch.time("tokenizer_alone_code", partial(alone, text, piece)) == list(ids)


def alone(text: ModelText, new_text: str) -> list[int]:
    """Tokenize with the fastest call of the library `tokenizers` alone."""
    return list(text.tokenizer.encode_batch_fast([new_text], add_special_tokens=False)[0].ids)


def _new_text(text: ModelText, rng: random.Random) -> str:
    """Return sentences of at least GROWTH tokens, words separated by single spaces."""
    said = sentence(rng)
    while len(said) < GROWTH * _CHARS_A_TOKEN:
        said += " " + sentence(rng)
    while len(alone(text, said)) < GROWTH:
        said += " " + sentence(rng)
    return said


def _quantiles(values: list[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return ordered[len(ordered) // 2], ordered[int(0.99 * (len(ordered) - 1))]


if __name__ == "__main__":
    main()
