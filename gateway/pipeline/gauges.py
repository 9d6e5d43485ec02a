"""Gauges that are computed at each scrape, from the parts that they describe."""

from collections.abc import Iterable

from gateway.fleet.circuit_breaker import BREAKER_STATES
from gateway.fleet.fleet import Fleet
from gateway.ledger.ledger import Ledger, SqliteLedger
from gateway.metering.budgets import Budgets
from gateway.metering.device_time import DeviceTimes
from gateway.pipeline.dispatcher import Dispatcher
from gateway.runs.registry import RunRegistry
from gateway.runtime.background import Background
from gateway.telemetry.metrics import Gauge


def request_gauges(
    dispatcher: Dispatcher, runs: RunRegistry, ledger: Ledger, budgets: Budgets, *, now: float
) -> Iterable[Gauge]:
    """Yield gauges of queue, runs, ledger and budgets. `now` is monotonic."""
    yield Gauge("headway_queue_length", "Requests that wait for a worker.", {}, len(dispatcher.queue))
    yield Gauge("headway_runs", "Live runs.", {}, len(runs))
    dropped = getattr(ledger, "dropped", 0)
    yield Gauge("headway_ledger_dropped_rows", "Rows that did not fit.", {}, dropped, counts=True)
    yield Gauge("headway_kv_index_pages", "Pages whose place is known.", {}, len(dispatcher.fleet.kv_index))
    yield Gauge("headway_budget_reservations", "Requests with a reservation in a budget.", {}, budgets.num_reservations)
    settled = budgets.settled
    yield Gauge("headway_budget_settled_tokens", "Tokens charged to budgets.", {}, settled.tokens, counts=True)
    yield Gauge("headway_budget_settled_usd", "Dollars charged to budgets.", {}, settled.usd, counts=True)
    for name, ttft_margin in dispatcher.estimator.ttft_margins.items():
        labels = {"worker": name}
        margin = ttft_margin.margin(now)
        yield Gauge("headway_ttft_margin", "Share by which predictions to a first token are stretched.", labels, margin)


def excess_gauges(fleet: Fleet) -> Iterable[Gauge]:
    """Yield the counters of all servers, also at 0: an increase shows only in a series that exists before it."""
    numbers = dict.fromkeys([*fleet.clients, *fleet.upstreams], 0)
    for (server, _), number in fleet.excess.items():
        numbers[server] += number
    for server, number in numbers.items():
        labels = {"server": server}
        yield Gauge("headway_out_of_bounds_reports", "Reports beyond their bounds.", labels, number, counts=True)


def background_gauges(background: Background, ledger: Ledger) -> Iterable[Gauge]:
    """Yield the state of every background task and thread."""
    restarts, problems = {**background.restarts}, {**background.problems}
    if isinstance(ledger, SqliteLedger):
        restarts["ledger"] = ledger.restarts
        problems |= {"ledger": ledger.problem} if ledger.problem else {}
    for task, number in restarts.items():
        labels = {"task": task}
        yield Gauge(
            "headway_background_up", "0 while a failed task waits for its restart.", labels, float(task not in problems)
        )
        yield Gauge("headway_background_restarts", "Failures of a background task.", labels, number, counts=True)


def worker_gauges(fleet: Fleet, device_times: DeviceTimes) -> Iterable[Gauge]:
    for name, client in fleet.clients.items():
        labels = {"worker": name, "model": fleet.policy.workers[name].model}
        yield Gauge("headway_worker_up", "1 when it can take requests.", labels, float(client.healthy))
        for phase, errors in fleet.predictors[name].errors.items():
            of_phase = {**labels, "phase": phase}
            yield Gauge("headway_prediction_bias_seconds", "Mean of actual - predicted.", of_phase, errors.bias_s)
            yield Gauge("headway_prediction_deviation_seconds", "Its deviation.", of_phase, errors.deviation_s)
        if client.hello:
            runs = {"device": client.hello.device, **{key: client.hello.kernels.get(key, "") for key in ("step", "dtype")}}
            yield Gauge("headway_worker_info", "1, with the code that runs its steps.", {**labels, **runs}, 1.0)
        if (load := client.load) is None:
            continue
        num_used = load.num_pages - load.free_pages - load.cached_pages
        share = num_used / max(1, load.num_pages)
        spent = device_times.workers[name].total
        yield Gauge("headway_worker_busy_seconds", "Device time in steps.", labels, load.busy_s, counts=True)
        yield Gauge("headway_worker_idle_seconds", "Time between steps.", labels, load.idle_s, counts=True)
        yield Gauge("headway_worker_attributed_seconds", "Busy time charged.", labels, load.attributed_s, counts=True)
        excess_s = device_times.workers[name].excess_s
        yield Gauge("headway_worker_excess_seconds", "Reported time beyond the wall time.", labels, excess_s, counts=True)
        yield Gauge("headway_idle_usd", "Dollars of time between steps.", labels, spent.idle_usd, counts=True)
        unattributed = max(0.0, spent.unattributed_usd)
        yield Gauge("headway_unattributed_usd", "Dollars of steps for nobody.", labels, unattributed, counts=True)
        yield Gauge("headway_worker_usd_per_second", "Price of a second.", labels, fleet.usd_per_s[name])
        for state, pages in (("free", load.free_pages), ("cached", load.cached_pages), ("used", num_used)):
            yield Gauge("headway_worker_pages", "KV pages by state.", {**labels, "state": state}, pages)
        twin = {"model_name": labels["model"], "worker": name}
        yield Gauge("vllm:num_requests_running", "Sequences in the batch.", twin, load.running)
        yield Gauge("vllm:num_requests_waiting", "Sequences waiting.", twin, load.waiting)
        yield Gauge("vllm:kv_cache_usage_perc", "Share of pages in use.", twin, share)
        yield Gauge("vllm:gpu_cache_usage_perc", "Old name of vllm:kv_cache_usage_perc.", twin, share)


def upstream_gauges(fleet: Fleet) -> Iterable[Gauge]:
    for name, upstream in fleet.upstreams.items():
        labels, state = {"upstream": name, "model": upstream.policy.model}, upstream.breaker.state
        yield Gauge("headway_upstream_up", "1 when it can take requests.", labels, float(upstream.healthy))
        yield Gauge("headway_upstream_running", "Requests under way.", labels, upstream.num_running)
        yield Gauge("headway_upstream_failures", "Tries that failed.", labels, upstream.num_failures, counts=True)
        for one in BREAKER_STATES:
            yield Gauge("headway_upstream_circuit", "1 for its state.", {**labels, "state": one}, float(one == state))
