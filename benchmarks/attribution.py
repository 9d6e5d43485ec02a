"""Claim: a request is charged what it caused: the cost rule's shares are within 5 % of Shapley values, and nothing is lost.

Method: the engine runs a seeded mix of prompts (some with a shared prefix) on the shipped models. At sampled steps the same
forward pass is repeated, with the same pages, for subsets of the batch, and timed in the thread's CPU time. That is what those
sequences would have taken alone. Every subset is timed in REPEATS rounds, all in turn and each round in an order of its own, so
that a disturbance meets none of them alone; its time is the median. Shapley values of these times, exact up to five sequences
and over sampled orders and their reverses above, are the fair shares. The rule splits the time of the whole batch with the
coefficients that it has fitted by then from every pass so far.

Error: what each request was charged in all graded steps against its fair shares, sum of |difference| over the sum of times: a
bill is per request. Beside it step by step, in which the noise of single measurements does not cancel. Noise floor: the same
sums between the fair shares of the odd and of the even rounds, two measurements of one thing; below it no rule can be told
from Shapley. Baselines: by tokens computed, and by time in the batch (equal shares). Conservation: requests' device-seconds
and idle time against wall time.
"""

import itertools
import random
import statistics
import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

from backends.config import Settings
from backends.engine import Engine, caused_by
from backends.runner import Runner
from backends.sampler import Sampled
from backends.scheduler import Work
from backends.start import start_engine
from backends.step_cost import Caused, StepCost
from backends.wire import Sampling, Submit
from benchmarks.report import ROOT, Target, arguments, finish, progress, table

MODELS = ("pico", "nano")
MAX_SEQUENCES = 8
EXACT_UP_TO = 5
ORDERS = 32
REPEATS = 6
"""Rounds; the odd and the even ones are two measurements."""
WARM_UP_STEPS = 200
"""About as many as the fit remembers (step_cost.FORGET)."""
RULES = ("step model", "by tokens", "by time")
NOISE = "noise floor"

Subset = frozenset[int]


class Graded(NamedTuple):
    """One step: its time, whose it was, the fair shares, each rule's, and how two measurements of those differ. Seconds."""

    requests: list[int]
    whole_s: float
    fair_s: list[float]
    shares_s: dict[str, list[float]]
    apart_s: list[float]


class Clock:
    """The thread's CPU time, less what grading took: to the engine that never happened, nor what others did to the machine."""

    def __init__(self) -> None:
        self.left_out_ns = 0

    def __call__(self) -> int:
        return time.thread_time_ns() - self.left_out_ns


class GradingRunner:
    """The real runner; at times it also times subsets of the batch. A repeated pass writes the same to the same slots."""

    def __init__(self, runner: Runner, clock: Clock, every: int, rng: random.Random) -> None:
        self._runner, self._clock, self._every, self._rng = runner, clock, every, rng
        self.engine: Engine | None = None
        self.num_steps = 0
        self._rule = StepCost()
        self.graded: list[Graded] = []

    def run(self, work: Sequence[Work]) -> list[list[Sampled]]:
        self.num_steps += 1
        if self.num_steps > WARM_UP_STEPS and len(work) > 1 and self._is_due(work):
            started = time.thread_time_ns()
            self.graded.append(self._grade(work))
            self._clock.left_out_ns += time.thread_time_ns() - started
        started_s = time.thread_time()
        sampled = self._runner.run(work)
        self._rule.observe(self._caused(work), time.thread_time() - started_s)
        return sampled

    def _is_due(self, work: Sequence[Work]) -> bool:
        """Steps that read a prompt are rare, and where requests differ most: half of those, and one in `every` of the rest."""
        mixed = any(one.length > 1 for one in work)
        return self._rng.random() < (0.5 if mixed else 1 / self._every)

    def _grade(self, work: Sequence[Work]) -> Graded:
        everyone = frozenset(range(len(work)))
        game = Game(len(work), self._rng)
        rounds = [self._round(work, game.subsets) for _ in range(REPEATS)]
        odd, even, all_s = (_medians(some) for some in (rounds[::2], rounds[1::2], rounds))
        whole = all_s[everyone]
        caused = self._caused(work)
        modelled = [share / 1e9 for share in self._rule.split(caused, round(whole * 1e9))]
        tokens = sum(one.tokens for one in caused)
        shares = (modelled, [whole * one.tokens / tokens for one in caused], [whole / len(work)] * len(work))
        apart = [one - other for one, other in zip(game.shapley(odd), game.shapley(even), strict=True)]
        requests = [one.sequence.request for one in work]
        return Graded(requests, whole, game.shapley(all_s), dict(zip(RULES, shares, strict=True)), apart)

    def _round(self, work: Sequence[Work], subsets: Sequence[Subset]) -> dict[Subset, float]:
        order = self._rng.sample(subsets, len(subsets))
        return {subset: self._timed([work[i] for i in sorted(subset)]) for subset in order}

    def _caused(self, work: Sequence[Work]) -> list[Caused]:
        """As the engine tells the rule."""
        assert self.engine
        return [caused_by(one, self.engine.limits.kv_bytes) for one in work]

    def _timed(self, part: list[Work]) -> float:
        started = time.thread_time()
        self._runner.run(part)
        return time.thread_time() - started


def _medians(rounds: Sequence[dict[Subset, float]]) -> dict[Subset, float]:
    return {subset: statistics.median(one[subset] for one in rounds) for subset in rounds[0]}


class Game:
    """Orders in which the players of one step join, and the subsets whose worth they need."""

    def __init__(self, players: int, rng: random.Random) -> None:
        everyone = range(players)
        if players <= EXACT_UP_TO:
            self._orders = [list(order) for order in itertools.permutations(everyone)]
        else:
            drawn = [rng.sample(everyone, players) for _ in range(ORDERS // 2)]
            self._orders = drawn + [order[::-1] for order in drawn]
        self.subsets = list({frozenset(order[:size]) for order in self._orders for size in range(1, players + 1)})

    def shapley(self, worth: dict[Subset, float]) -> list[float]:
        """Each player's mean contribution over the orders; they sum to the worth of all."""
        gained = [0.0] * len(self._orders[0])
        for order in self._orders:
            before = 0.0
            for size, player in enumerate(order, 1):
                now = worth[frozenset(order[:size])]
                gained[player] += now - before
                before = now
        return [one / len(self._orders) for one in gained]


class Outcome(NamedTuple):
    """Of every rule, and between two measurements of the fair shares."""

    error: dict[str, float]
    error_by_step: dict[str, float]
    steps: int
    mean_batch: float
    conservation: float


def measure(model: str, steps: int, every: int, seed: int) -> Outcome:
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
    begun = engine.meter.marked_ns
    spent_s = _drive(engine, runner, steps, rng)
    engine.meter.idle_until(engine.clock_ns())
    wall_s = (engine.meter.marked_ns - begun) / 1e9
    lost = abs(spent_s + engine.meter.idle_ns / 1e9 - wall_s) / wall_s
    graded = runner.graded
    by_request = {rule: _error(graded, rule, lambda step, place: step.requests[place]) for rule in (*RULES, NOISE)}
    by_step = {rule: _error(graded, rule, lambda step, place: (id(step), place)) for rule in (*RULES, NOISE)}
    return Outcome(by_request, by_step, len(graded), statistics.mean(len(one.fair_s) for one in graded), lost)


def _error(graded: Sequence[Graded], rule: str, whose: Callable[[Graded, int], Hashable]) -> float:
    """Sum of |charged - fair| over whoever was charged, as a share of the time."""
    off: dict[Hashable, float] = defaultdict(float)
    for step in graded:
        for place, apart in enumerate(step.apart_s):
            off[whose(step, place)] += apart if rule == NOISE else step.shares_s[rule][place] - step.fair_s[place]
    return sum(map(abs, off.values())) / sum(step.whole_s for step in graded)


def _drive(engine: Engine, runner: GradingRunner, graded_steps: int, rng: random.Random) -> float:
    """Until so many steps are graded and everything has ended. Returns the device-seconds that the requests were charged."""
    vocabulary, longest = engine.limits.vocab_size, engine.limits.longest
    shared = [rng.randrange(3, vocabulary) for _ in range(longest // 8)]
    numbers = itertools.count(1)
    spent_s = 0.0
    while engine.has_work or len(runner.graded) < graded_steps:
        room = MAX_SEQUENCES - len(engine.scheduler.running) - len(engine.scheduler.waiting)
        if len(runner.graded) < graded_steps and room > 0 and (not engine.has_work or rng.random() < 0.2):
            length = round(2 ** rng.uniform(3, (longest * 2 // 3).bit_length() - 1))
            fresh = [rng.randrange(3, vocabulary) for _ in range(length)]
            prompt = (shared + fresh if rng.random() < 0.3 else fresh)[: longest - 130]
            sampling = Sampling(max_tokens=rng.randrange(4, 128), ignore_eos=True)
            engine.submit("benchmark", Submit(request=next(numbers), prompt=array("I", prompt).tobytes(), sampling=sampling))
        if engine.has_work:
            engine.step()
        spent_s += sum(finished.device_s for _, finished in engine.take_output().finished)
        engine.index.take_changes()
    return spent_s


def main() -> None:
    args = arguments(__doc__).parse_args()
    steps, every = (6, 40) if args.quick else (150, 25)
    outcomes = {model: measure(model, steps, every, seed=7) for model in MODELS}
    rows = [
        (model, rule, 100 * outcome.error[rule], 100 * outcome.error_by_step[rule])
        for model, outcome in outcomes.items()
        for rule in (*RULES, NOISE)
    ]
    print(table(("model", "rule", "error, %", "by step, %"), rows))
    results = {model: outcome._asdict() for model, outcome in outcomes.items()}
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
