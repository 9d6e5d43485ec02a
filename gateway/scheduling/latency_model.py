"""Prediction of queue, prefill and decode time of a worker, learned from its reports of finished requests.

Pure: time is an argument. The model starts from a guess, then from the step model in the worker's first `Load`, which the
worker fits to steps of its own (backends/worker/profile_steps.py). The first report of a request overrides both.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

from backends.wire import Finished, Load
from gateway.policy.worker_rates import WorkerRates
from gateway.routing.decision import WorkerView

_FORGET = 0.98
"""Weight that a finished request keeps at each following one: about the last 50 requests count."""
_PRIOR_WEIGHT = 0.02
LOAD_IS_FRESH_S = 5.0
Phase = Literal["wait", "prefill", "decode", "ttft"]
PHASES: tuple[Phase, ...] = get_args(Phase)


COLD = WorkerRates(overhead_s=0.002, prefill_s_per_token=1e-4, tpot_s=0.005, decode_device_s_per_token=0.005)
"""Rates of a worker without any report. Only the order of magnitude matters: the first report replaces them."""


def cold_rates(weight_bytes: int) -> WorkerRates:
    """Return a first guess from the size of the weights: a token reads them once at 10 GB/s, and prefill shares that among
    8.

    Both numbers are from a laptop. A larger model must only be predicted to be slower until its first report.
    """
    step_s = 3e-4 + weight_bytes / 10e9
    return WorkerRates(step_s, step_s / 8, step_s, step_s)


class _LinearFit:
    """y = intercept + slope * x, neither below zero: weighted least squares over decaying sums.

    The starting line keeps a small constant weight, which decides the split if x never varies. Noise grows with x, so an
    observation weighs 1 / (1 + x / scale)^2.
    """

    def __init__(self, intercept: float, slope: float, scale: float) -> None:
        """`scale` is a typical x."""
        self.intercept, self.slope = intercept, slope
        self._start = intercept, slope
        self._scale = scale
        self._n = self._x = self._xx = self._y = self._xy = 0.0

    def observe(self, x: float, y: float) -> None:
        weight = (1.0 + x / self._scale) ** -2
        self._n = self._n * _FORGET + weight
        self._x = self._x * _FORGET + weight * x
        self._xx = self._xx * _FORGET + weight * x * x
        self._y = self._y * _FORGET + weight * y
        self._xy = self._xy * _FORGET + weight * x * y
        self._solve()

    def _solve(self) -> None:
        prior_xx = _PRIOR_WEIGHT * self._scale * self._scale
        n, xx = self._n + _PRIOR_WEIGHT, self._xx + prior_xx
        y, xy = self._y + _PRIOR_WEIGHT * self._start[0], self._xy + prior_xx * self._start[1]
        determinant = n * xx - self._x * self._x
        self.intercept = (y * xx - xy * self._x) / determinant
        self.slope = (xy * n - y * self._x) / determinant
        if self.intercept < 0:
            self.intercept, self.slope = 0.0, max(0.0, xy / xx)
        elif self.slope < 0:
            self.intercept, self.slope = max(0.0, y / n), 0.0


class _Mean:
    """A decaying weighted mean. The starting value has the weight of one small request."""

    def __init__(self, value: float) -> None:
        self._sum, self._weight = value, 1.0

    @property
    def value(self) -> float:
        return self._sum / self._weight

    def observe(self, value: float, weight: float) -> None:
        self._sum = self._sum * _FORGET + value * weight
        self._weight = self._weight * _FORGET + weight


class Errors:
    """Decaying mean and deviation of actual minus predicted time, in seconds. Both start at zero with the weight of one
    request."""

    def __init__(self) -> None:
        self._mean, self._square = _Mean(0.0), _Mean(0.0)

    @property
    def bias_s(self) -> float:
        return self._mean.value

    @property
    def deviation_s(self) -> float:
        return math.sqrt(max(0.0, self._square.value - self._mean.value**2))

    def observe(self, error_s: float) -> None:
        self._mean.observe(error_s, 1.0)
        self._square.observe(error_s * error_s, 1.0)


class _Expected(NamedTuple):
    wait_s: float
    prefill_s: float
    tpot_s: float


class LatencyPredictor:
    """Rates and backlog of one worker. `errors` are by phase: `decode` is of one token, `ttft` of wait and prefill
    together.

    The gateway's own counters keep the backlog (`submitted`, `observe_finished`). A fresh `Load` can only raise it, which
    accounts for other gateways; a stale one is ignored. `changed` is called when the view may have changed.
    """

    def __init__(self, prior: WorkerRates | None = None, *, changed: Callable[[], None] = lambda: None) -> None:
        self._changed = changed
        self._informed = False
        self._start(prior or COLD)
        self._service = _Mean(0.0)
        self._pending: dict[int, int] = {}
        self._expected: dict[int, _Expected] = {}
        self.errors: dict[Phase, Errors] = {phase: Errors() for phase in PHASES}
        self._load: Load | None = None
        self._load_at = 0.0

    def _start(self, rates: WorkerRates) -> None:
        self._prefill = _LinearFit(rates.overhead_s, rates.prefill_s_per_token, scale=500.0)
        self._tpot = _Mean(rates.tpot_s)
        self._decode = _Mean(rates.decode_device_s_per_token)

    @property
    def rates(self) -> WorkerRates:
        return WorkerRates(self._prefill.intercept, max(self._prefill.slope, 1e-9), self._tpot.value, self._decode.value)

    @property
    def running(self) -> int:
        """Number of unfinished requests of this gateway."""
        return len(self._pending)

    def submitted(self, request: int, uncached_tokens: int, *, wait_s: float = 0.0) -> None:
        """Record a submitted request. `wait_s` is the result of `wait_s()` just before."""
        rates = self.rates
        prefill_s = rates.overhead_s + uncached_tokens * rates.prefill_s_per_token
        self._expected[request] = _Expected(wait_s, prefill_s, rates.tpot_s)
        self._pending[request] = uncached_tokens
        self._changed()

    def first_token(self, request: int) -> None:
        """Record that the prefill of a request is finished, so it no longer counts as backlog."""
        if request in self._pending:
            self._pending[request] = 0
            self._changed()

    def lost(self) -> None:
        """Clear the backlog after the link dropped."""
        self._pending.clear()
        self._expected.clear()
        self._load = None
        self._changed()

    def observe_finished(self, finished: Finished) -> None:
        self._pending.pop(finished.request, None)
        expected = self._expected.pop(finished.request, None)
        self._changed()
        if finished.reason not in ("stop", "length") or finished.device_s <= 0:
            return
        self._informed = True
        if expected is not None:
            self._compare(finished, expected)
        if finished.prefill_device_s > 0:
            uncached = max(1, finished.num_prompt_tokens - finished.num_cached_tokens)
            self._prefill.observe(uncached, finished.prefill_device_s)
        steps = finished.num_output_tokens - 1  # prefill computes the first token
        if steps > 0:
            self._decode.observe(max(0.0, finished.device_s - finished.prefill_device_s) / steps, steps)
            if finished.decode_s > 0:
                self._tpot.observe(finished.decode_s / steps, steps)
        self._service.observe(finished.prefill_s + finished.decode_s, 1.0)

    def _compare(self, finished: Finished, expected: _Expected) -> None:
        wait_s, prefill_s = finished.queue_s - expected.wait_s, finished.prefill_s - expected.prefill_s
        self.errors["wait"].observe(wait_s)
        self.errors["prefill"].observe(prefill_s)
        self.errors["ttft"].observe(wait_s + prefill_s)
        if finished.num_output_tokens > 1:
            self.errors["decode"].observe(finished.decode_s / (finished.num_output_tokens - 1) - expected.tpot_s)

    def observe_load(self, load: Load, now: float) -> None:
        self._load, self._load_at = load, now
        self._changed()
        step_s, token_s, *_ = load.step_cost
        if not self._informed and token_s > 0:
            step_s = max(step_s, 0.0)
            self._start(WorkerRates(step_s, token_s, step_s + token_s, step_s + token_s))

    def wait_s(self, *, max_sequences: int, queued_tokens: int, now: float) -> float:
        """Return the seconds until a new request's prefill starts: the prefills before it, and its wait for a seat if none
        is free."""
        return self._wait_s(self.rates, sum(self._pending.values()), max_sequences, queued_tokens, now)

    def _wait_s(self, rates: WorkerRates, pending_tokens: int, max_sequences: int, queued_tokens: int, now: float) -> float:
        running, waiting = len(self._pending), 0
        if self._load is not None and now - self._load_at <= LOAD_IS_FRESH_S:
            running, waiting = max(running, self._load.running), self._load.waiting
        tokens = queued_tokens + pending_tokens
        over = running + waiting - max_sequences + 1
        seat_s = self._service.value * over / max_sequences if over > 0 else 0.0
        return tokens * rates.prefill_s_per_token + seat_s

    def turns_s(self, num_ahead: float) -> float:
        """Return the seconds until `num_ahead` waiting requests have started. By Little's law requests finish, and so
        start, at the rate of running requests over the service time."""
        return self._service.value * num_ahead / max(1, len(self._pending))

    def view(
        self,
        *,
        worker: str,
        model: str,
        tier: str,
        healthy: bool,
        max_context: int,
        usd_per_s: float,
        max_sequences: int,
        now: float,
        queued_tokens: int = 0,
    ) -> WorkerView:
        """Return the worker's view. `queued_tokens` are uncached prompt tokens that wait in the gateway for this worker."""
        rates, pending_tokens = self.rates, sum(self._pending.values())
        return WorkerView(
            worker=worker,
            model=model,
            tier=tier,
            healthy=healthy,
            max_context=max_context,
            usd_per_s=usd_per_s,
            max_sequences=max_sequences,
            wait_s=self._wait_s(rates, pending_tokens, max_sequences, queued_tokens, now),
            overhead_s=rates.overhead_s,
            prefill_s_per_token=rates.prefill_s_per_token,
            tpot_s=rates.tpot_s,
            decode_device_s_per_token=rates.decode_device_s_per_token,
        )


class OutputLengths:
    """Expected number of output tokens: a decaying mean for each kind of request, at most `max_kinds`."""

    def __init__(self, first_guess: float = 32.0, max_kinds: int = 64) -> None:
        self._first_guess = first_guess
        self._max_kinds = max_kinds
        self._means: dict[str, _Mean] = {}

    def observe(self, kind: str, num_output_tokens: int) -> None:
        if kind not in self._means and len(self._means) >= self._max_kinds:
            return
        self._means.setdefault(kind, _Mean(self._first_guess)).observe(num_output_tokens, 1.0)

    def expect(self, kind: str, max_tokens: int) -> float:
        mean = self._means.get(kind)
        return min(float(max_tokens), mean.value if mean else self._first_guess)
