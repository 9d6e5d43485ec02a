"""Claim: a request is charged what it caused: the cost rule's shares are within 5 % of Shapley values, and nothing is lost.

Method: the engine runs a seeded mix of prompts (8 to 2,700 tokens, three in ten with a shared prefix) on the shipped models. Up
to six sequences run at once, so that most steps decode at different contexts and some also prefill. After the warm-up one step
in `every` is graded, whatever its work: the same forward pass is repeated, with the same pages, for every subset of the batch.
That is the time of those sequences alone. Alone, their previous steps would be their own too, so each subset is timed after
WARM_S of passes of the same subset, and its caches hold its own data. All subsets are timed in ROUNDS rounds, each in a
different order, so that a disturbance does not affect a single subset; the time of a subset is the median. Exact Shapley values
of these times are the fair shares. The rule splits the time of the whole batch with the coefficients fitted so far.

Times are the thread's CPU time, as the engine has one thread here; `cpu_of_wall` is its share of wall time.

Error: charges of each request over all graded steps against its fair shares, sum of |difference| over the sum of times, because
a bill is per request. It is also reported step by step, where the noise of single measurements does not cancel. Noise floor:
half the difference between the fair shares of odd and even rounds, summed the same way, which has the spread of their mean. An
error below it cannot be distinguished from zero. Baselines: by tokens computed, and by time in the batch (equal shares).
Conservation: requests' device-seconds and idle time against wall time.

The fit's settings (backends/engine/step_cost_model.py) were chosen on a recording of pico under seed 7 (docs/log.md), which may
bias the result in their favour. Another `--seed` is other traffic.
"""

import math
import random
import statistics
import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

from backends.config import Settings
from backends.engine.engine import Engine, caused_by
from backends.engine.step_cost_model import Caused, StepCostModel
from backends.engine.work import Runner, Sampled, Work
from backends.wire import Sampling, Submit
from backends.worker.startup import start_engine
from benchmarks.report import ROOT, Target, arguments, finish, progress, table

MODELS = ("pico", "nano")
MAX_SEQUENCES = 6
"""Sequences of a batch, so that all 2^6 subsets can be timed."""
ROUNDS = 6
"""Timed passes of each subset; the odd and the even ones are two measurements."""
WARM_S = 0.005
"""Seconds of passes before a measurement. A decode of 62 tokens on nano takes 203 us after four passes of its own, 469 us
directly after longer ones, 165 us if all are short."""
WARM_UP_STEPS = 500
"""Steps: about as many as the fit remembers (step_cost.FORGET)."""
SEED = 7
"""Seed of the committed results."""
RULES = ("step model", "by tokens", "by time")
NOISE = "noise floor"

Subset = int
"""A set of sequences. Bit i: the batch's i-th sequence is in it."""


class Graded(NamedTuple):
    """One graded step: its owners, whether it had a prefill, its time, the fair shares, each rule's shares, and half the
    difference of two measurements. Seconds."""

    requests: list[int]
    mixed: bool
    whole_s: float
    fair_s: list[float]
    shares_s: dict[str, list[float]]
    apart_s: list[float]


class Clock:
    """The thread's CPU time without grading, so that the engine measures neither grading nor other processes."""

    def __init__(self) -> None:
        self.left_out_ns = 0

    def __call__(self) -> int:
        return time.thread_time_ns() - self.left_out_ns


class GradingRunner:
    """The real runner, which also times subsets of the batch. A repeated pass writes the same values to the same slots."""

    def __init__(self, runner: Runner, clock: Clock, every: int, rng: random.Random) -> None:
        self._runner, self._clock, self._every, self._rng = runner, clock, every, rng
        self.engine: Engine | None = None
        self.num_steps = 0
        self._rule = StepCostModel()
        self.graded: list[Graded] = []
        self.cpu_s = self.wall_s = 0.0

    def run(self, work: Sequence[Work]) -> list[list[Sampled]]:
        self.num_steps += 1
        if self.num_steps > WARM_UP_STEPS and len(work) > 1 and self._rng.random() < 1 / self._every:
            started = time.thread_time_ns()
            self.graded.append(self._grade(work))
            self._clock.left_out_ns += time.thread_time_ns() - started
        started_s = time.thread_time()
        sampled = self._runner.run(work)
        self._rule.observe(self._caused(work), time.thread_time() - started_s)
        return sampled

    def _grade(self, work: Sequence[Work]) -> Graded:
        everyone = 2 ** len(work) - 1
        rounds = [self._round(work) for _ in range(ROUNDS)]
        odd, even, all_s = (_medians(some) for some in (rounds[::2], rounds[1::2], rounds))
        whole = all_s[everyone]
        caused = self._caused(work)
        modelled = [share / 1e9 for share in self._rule.split(caused, round(whole * 1e9))]
        tokens = sum(one.tokens for one in caused)
        shares = (modelled, [whole * one.tokens / tokens for one in caused], [whole / len(work)] * len(work))
        apart = [(one - other) / 2 for one, other in zip(shapley(odd), shapley(even), strict=True)]
        requests = [one.sequence.request for one in work]
        mixed = any(one.tokens > 1 for one in caused)
        return Graded(requests, mixed, whole, shapley(all_s), dict(zip(RULES, shares, strict=True)), apart)

    def _round(self, work: Sequence[Work]) -> list[float]:
        """Return seconds by subset."""
        found = [0.0] * 2 ** len(work)
        subsets = range(1, len(found))
        for subset in self._rng.sample(subsets, len(subsets)):
            found[subset] = self._timed([one for i, one in enumerate(work) if subset >> i & 1])
        return found

    def _caused(self, work: Sequence[Work]) -> list[Caused]:
        """Return the work as the engine reports it to the rule."""
        assert self.engine
        return [caused_by(one, self.engine.limits.kv_bytes) for one in work]

    def _timed(self, part: list[Work]) -> float:
        warm = time.thread_time() + WARM_S
        while time.thread_time() < warm:
            self._runner.run(part)
        started_s, started = time.perf_counter(), time.thread_time()
        self._runner.run(part)
        took = time.thread_time() - started
        self.cpu_s += took
        self.wall_s += time.perf_counter() - started_s
        return took


def _medians(rounds: Sequence[list[float]]) -> list[float]:
    return [statistics.median(one) for one in zip(*rounds, strict=True)]


def shapley(worth: Sequence[float]) -> list[float]:
    """Return each player's mean contribution over all orders of joining; `worth` is by subset. The sum is the worth of all."""
    players = len(worth).bit_length() - 1
    gained = [0.0] * players
    for subset, value in enumerate(worth):
        size = subset.bit_count()
        for player in range(players):
            if not subset >> player & 1:
                weight = 1 / (players * math.comb(players - 1, size))
                gained[player] += weight * (worth[subset | 1 << player] - value)
    return gained


class Outcome(NamedTuple):
    """Errors of every rule, and between two measurements of the fair shares; over all steps and over those with a prefill."""

    error: dict[str, float]
    error_by_step: dict[str, float]
    error_in_mixed: dict[str, float]
    requests: int
    steps: int
    mixed_steps: int
    mean_batch: float
    cpu_of_wall: float
    conservation: float


def measure(model: str, requests: int, every: int, seed: int) -> Outcome:
    settings = Settings(
        model=ROOT / "backends" / "zoo" / model,
        name=model,
        listen="",
        threads=1,
        max_sequences=MAX_SEQUENCES,
        prefill_tokens=256,
    )
    started = start_engine(settings, progress).engine
    clock, rng = Clock(), random.Random(seed)
    runner = GradingRunner(started._runner, clock, every, rng)
    engine = Engine(runner, started._decoder, started.limits, clock_ns=clock, rng=random.Random(seed))
    runner.engine = engine
    begun = engine.busy_meter.marked_ns
    spent_s = _drive(engine, runner, requests, rng)
    engine.busy_meter.idle_until(engine.clock_ns())
    wall_s = (engine.busy_meter.marked_ns - begun) / 1e9
    graded = runner.graded
    mixed = [one for one in graded if one.mixed]
    return Outcome(
        error={rule: _error(graded, rule, _request) for rule in (*RULES, NOISE)},
        error_by_step={rule: _error(graded, rule, _step) for rule in (*RULES, NOISE)},
        error_in_mixed={rule: _error(mixed, rule, _request) for rule in (*RULES, NOISE)},
        requests=len({request for one in graded for request in one.requests}),
        steps=len(graded),
        mixed_steps=len(mixed),
        mean_batch=statistics.mean(len(one.fair_s) for one in graded),
        cpu_of_wall=runner.cpu_s / runner.wall_s,
        conservation=abs(spent_s + engine.busy_meter.idle_ns / 1e9 - wall_s) / wall_s,
    )


def _request(step: Graded, place: int) -> Hashable:
    return step.requests[place]


def _step(step: Graded, place: int) -> Hashable:
    return id(step), place


def _error(graded: Sequence[Graded], rule: str, whose: Callable[[Graded, int], Hashable]) -> float:
    """Return the sum of |charged - fair| by owner, as a share of the time."""
    off: dict[Hashable, float] = defaultdict(float)
    for step in graded:
        for place, apart in enumerate(step.apart_s):
            off[whose(step, place)] += apart if rule == NOISE else step.shares_s[rule][place] - step.fair_s[place]
    return sum(map(abs, off.values())) / sum(step.whole_s for step in graded)


def _drive(engine: Engine, runner: GradingRunner, requests: int, rng: random.Random) -> float:
    """Run this many requests after the warm-up, until all have ended. Returns the device-seconds charged to them."""
    vocabulary, longest = engine.limits.vocab_size, engine.limits.longest
    shared = [rng.randrange(3, vocabulary) for _ in range(longest // 8)]
    number, spent_s = 0, 0.0
    while engine.has_work or requests > 0:
        room = MAX_SEQUENCES - len(engine.scheduler.running) - len(engine.scheduler.waiting)
        if requests > 0 and room > 0 and (not engine.has_work or rng.random() < 0.2):
            length = round(math.exp(rng.uniform(math.log(8), math.log(longest * 2 / 3))))
            fresh = [rng.randrange(3, vocabulary) for _ in range(length)]
            prompt = (shared + fresh if rng.random() < 0.3 else fresh)[: longest - 130]
            sampling = Sampling(max_tokens=rng.randrange(4, 128), ignore_eos=True)
            number += 1
            requests -= runner.num_steps > WARM_UP_STEPS
            engine.submit("benchmark", Submit(request=number, prompt=array("I", prompt).tobytes(), sampling=sampling))
        if engine.has_work:
            engine.step()
        spent_s += sum(finished.device_s for _, finished in engine.take_output().finished)
        engine.index.take_changes()
    return spent_s


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seed", type=int, default=SEED, help="of the traffic and of which steps are graded")
    args = parser.parse_args()
    requests, every = (4, 12) if args.quick else (20, 6)
    outcomes = {model: measure(model, requests, every, args.seed) for model in MODELS}
    rows = [
        (model, rule, *(100 * errors[rule] for errors in (outcome.error, outcome.error_by_step, outcome.error_in_mixed)))
        for model, outcome in outcomes.items()
        for rule in (*RULES, NOISE)
    ]
    print(table(("model", "rule", "error, %", "by step, %", "steps with a prompt, %"), rows))
    results = {"seed": args.seed} | {model: outcome._asdict() for model, outcome in outcomes.items()}
    targets = [
        Target(f"{model}: error against Shapley, %", 100 * outcome.error["step model"], "<=", 5.0)
        for model, outcome in outcomes.items()
    ]
    targets += [
        Target(f"{model}: conservation error, %", 100 * outcome.conservation, "<=", 0.1) for model, outcome in outcomes.items()
    ]
    finish("attribution", results, targets)


if __name__ == "__main__":
    main()
