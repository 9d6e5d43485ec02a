"""All workers and upstreams: their clients, cache indexes, latency predictors and prices."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from backends import wire
from gateway.fleet.socket_dir import SocketDirectory
from gateway.fleet.supervisor import Command, Supervisor, worker_command
from gateway.fleet.upstream import Upstream
from gateway.fleet.worker_client import WorkerClient, WorkerEvents
from gateway.fleet.worker_views import WorkerViews
from gateway.metering.cost import ByTime, ByToken, Tariff, worker_usd_per_s
from gateway.policy.schema import Policy
from gateway.policy.worker_rates import WorkerRates
from gateway.routing.decision import RoutingRequest, WorkerView
from gateway.routing.shortlist import Short
from gateway.runtime.background import Background
from gateway.scheduling.kv_footprint import KvFootprints
from gateway.scheduling.kv_index import KvIndex, of_host, reload_credit
from gateway.scheduling.latency_model import LOAD_IS_FRESH_S, LatencyPredictor, cold_rates
from gateway.scheduling.retention import WITHIN_S, horizon_s

MAX_PAGES = 2_000_000
"""Page hashes in each KV index: about half a GB when full."""
UNKNOWN_CONTEXT = 2**31
"""Tokens assumed for a worker without a `Hello`: it must be rejected as unhealthy, not for its context length."""


class Fleet:
    """Composition of all servers. `changed` is called when a worker may have capacity again, came up or was lost; `lost` with
    the name of a lost worker."""

    def __init__(
        self,
        policy: Policy,
        *,
        env: Mapping[str, str],
        command: Command = worker_command,
        progress: Callable[[str], None] | None = None,
        cores: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policy = policy
        self.usd_per_s = worker_usd_per_s(policy)
        self.kv_index, self.host_kv_index = KvIndex(MAX_PAGES), KvIndex(MAX_PAGES)
        self.footprints = KvFootprints()
        self.queued_tokens: Counter[str] = Counter()
        """Uncached tokens queued in the gateway, by worker."""
        self.excess: Counter[tuple[str, str]] = Counter()
        """Reports that were out of bounds, by server and field."""
        self.changed: Callable[[], None] = lambda: None
        self.lost: Callable[[str], None] = lambda worker: None
        self.background = Background()
        """The tasks of the whole gateway."""
        self._clock = clock
        self._folder = SocketDirectory()
        paths = {name: Path(model.path) for name, model in policy.models.items()}
        self.supervisor = Supervisor(
            policy.workers,
            paths,
            self._folder.path,
            env=env,
            command=command,
            progress=progress,
            cores=cores,
            background=self.background,
        )
        self.worker_views = WorkerViews(policy.workers, self._view, LOAD_IS_FRESH_S)
        self.predictors = {
            name: LatencyPredictor(_prior(paths[worker.model]), changed=partial(self.worker_views.touch, name))
            for name, worker in policy.workers.items()
        }
        self.clients = {name: self._client(name) for name in policy.workers}
        self.upstreams = {
            name: Upstream(name, upstream, changed=lambda: self.changed(), excess=self._exceeded, clock=clock)
            for name, upstream in policy.upstreams.items()
        }
        self.predictors |= {name: upstream.predictor for name, upstream in self.upstreams.items()}

    def _client(self, name: str) -> WorkerClient:
        worker = self.policy.workers[name]
        url = worker.url or f"unix://{self.supervisor.sockets[name]}"
        events = WorkerEvents(
            cache=self._cached,
            load=self._loaded,
            finished=self._finished,
            state=self._state_changed,
            stalled=self.supervisor.kill,
            excess=self._exceeded,
        )
        return WorkerClient(
            name,
            url,
            events,
            token=worker.token,
            max_silence_s=self.policy.limits.max_silence_s,
            background=self.background,
        )

    def start(self) -> None:
        self.supervisor.start()
        for server in self.servers():
            server.start()

    async def disconnect(self) -> None:
        """Close all connections. Running requests end with an error."""
        for server in self.servers():
            await server.stop()

    async def stop(self) -> None:
        await self.disconnect()
        await self.supervisor.stop()
        self._folder.close()

    def missing(self) -> dict[str, str]:
        """Return local workers that are not up, with the reason; remote ones only while no server is up."""
        problems = {}
        if not any(server.healthy for server in self.servers()):
            problems = {name: client.problem for name, client in self.clients.items()}
        for name, local in self.supervisor.workers.items():
            client = self.clients[name]
            if not client.healthy:
                problems[name] = local.problem or ("loading" if not local.ready else client.problem)
        return problems

    def servers(self) -> list[WorkerClient | Upstream]:
        return [*self.clients.values(), *self.upstreams.values()]

    def server(self, name: str) -> WorkerClient | Upstream:
        return self.clients[name] if name in self.clients else self.upstreams[name]

    def tariff(self, name: str) -> Tariff:
        if name in self.upstreams:
            return ByToken(self.upstreams[name].policy.prices)
        return ByTime(self.predictors[name].rates, self.usd_per_s[name])

    def set_retention(self, worker: str, chain: str, score: float) -> None:
        """Set the retention score of a chain's pages on a worker; at 0 they may be evicted at once."""
        self.footprints.set_score(worker, chain, score)
        if worker in self.clients and self.policy.scheduling.retention:
            self.clients[worker].set_retention(chain, score)

    def horizon_s(self, worker: str) -> float:
        """Return the seconds within which a chain must return to find its pages still cached on this worker."""
        if not (capacity := self.capacity_tokens(worker) if worker in self.clients else 0):
            return WITHIN_S
        return horizon_s(capacity, 1.0 / self.predictors[worker].rates.prefill_s_per_token)

    def prefill_rate(self) -> float:
        """Return the uncached prompt tokens a second of all healthy workers together."""
        up = (self.predictors[name].rates for name, client in self.clients.items() if client.healthy)
        return sum(1.0 / rates.prefill_s_per_token for rates in up)

    def queue(self, worker: str, tokens: int) -> None:
        """Add to the uncached tokens queued for this worker; `tokens` is negative when they leave the queue."""
        if worker in self.clients:
            self.queued_tokens[worker] += tokens
            self.worker_views.touch(worker)

    def cached_tokens(self, worker: str, page_hashes: Sequence[bytes]) -> int:
        if worker in self.upstreams:
            return self.upstreams[worker].cached_tokens(page_hashes[0])
        hello = self.clients[worker].hello
        if not hello or not page_hashes:
            return 0
        resident = self.kv_index.cached_tokens(worker, page_hashes, hello.page_size)
        return resident + self._reloadable(worker, page_hashes[resident // hello.page_size :], hello.page_size)

    def _reloadable(self, worker: str, page_hashes: Sequence[bytes], page_size: int) -> int:
        """Return the tokens in the host cache that follow the resident ones, less the tokens that their reload time could
        prefill."""
        load = self.clients[worker].load
        if not load or not self.host_kv_index.num_pages(worker):
            return 0
        tokens = self.host_kv_index.cached_tokens(worker, page_hashes, page_size)
        prefill = self.predictors[worker].rates.prefill_s_per_token
        return reload_credit(tokens, reload_s_per_token=load.reload_s_per_token, prefill_s_per_token=prefill)

    def repair(self, worker: str, page_hashes: Sequence[bytes], cached_tokens: int, *, since: int) -> None:
        """Correct both indexes with the cached tokens that a worker reported for a prompt. As of its cache frame `since`, no
        later page of the prompt was on its device or host."""
        hello = self.clients[worker].hello
        if hello is None:
            return
        self.kv_index.repair(worker, page_hashes, cached_tokens, page_size=hello.page_size, since=since)
        self.host_kv_index.deny(worker, page_hashes[cached_tokens // hello.page_size :], since)

    def capacity_tokens(self, worker: str) -> int:
        """Return the tokens that a worker's pages hold; 0 before its first `Hello`."""
        hello = self.clients[worker].hello
        return hello.num_pages * hello.page_size if hello else 0

    def holders(self, page_hashes: Sequence[bytes]) -> dict[str, int]:
        """Return the workers that hold most of a prompt, on device or host, with the number of its tokens."""
        pages = self.kv_index.holders(page_hashes)
        if len(self.host_kv_index):
            return {
                worker: self.cached_tokens(worker, page_hashes)
                for worker in pages.keys() | self.host_kv_index.holders(page_hashes).keys()
            }
        hellos = ((worker, count, self.clients[worker].hello) for worker, count in pages.items())
        return {worker: count * hello.page_size for worker, count, hello in hellos if hello}

    def take_policy(self, policy: Policy) -> None:
        """Replace the policy after a reload, which changes no workers."""
        self.policy = policy
        self.worker_views.touch_all()

    def candidates(self, routing_request: RoutingRequest) -> Short:
        """Return the candidates of a decision. With upstreams these are all servers, as an upstream's view is never cached."""
        if self.upstreams:
            return Short(self.views(), None)
        return self.worker_views.candidates(routing_request, self._clock())

    def views(self) -> list[WorkerView]:
        """Return the current view of every worker and upstream."""
        now = self._clock()
        return [*self.worker_views.views(now), *(upstream.view(now) for upstream in self.upstreams.values())]

    def _view(self, name: str, now: float) -> WorkerView:
        client = self.clients[name]
        model = self.policy.workers[name].model
        return self.predictors[name].view(
            worker=name,
            model=model,
            tier=self.policy.models[model].tier,
            healthy=client.healthy,
            max_context=_longest(client.hello) if client.hello else UNKNOWN_CONTEXT,
            usd_per_s=self.usd_per_s[name],
            max_sequences=client.hello.max_sequences if client.hello else 1,
            now=now,
            queued_tokens=self.queued_tokens[name],
        )

    def top_worker(self) -> str | None:
        """Return a server of the best tier, which the all-on-large counterfactual is priced by; None when there is none."""
        tiers = self.policy.tier_by_model()
        for tier in reversed(self.policy.tiers):
            for name, model in self.policy.model_by_server().items():
                if tiers[model] == tier:
                    return name
        return None

    def _cached(self, worker: str, cache: wire.Cache) -> bool:
        self.host_kv_index.apply(worker, of_host(cache))
        return self.kv_index.apply(worker, cache)

    def _loaded(self, worker: str, load: wire.Load) -> None:
        now = self._clock()
        self.predictors[worker].observe_load(load, now)
        self.worker_views.loaded(worker, now)
        self.changed()

    def _exceeded(self, server: str, fields: Sequence[str]) -> None:
        self.excess.update((server, field) for field in fields)

    def _finished(self, worker: str, finished: wire.Finished) -> None:
        self.predictors[worker].observe_finished(finished)

    def _state_changed(self, worker: str) -> None:
        if not self.clients[worker].healthy:
            self.predictors[worker].lost()
            self.kv_index.forget(worker)
            self.footprints.lost(worker)
            self.host_kv_index.forget(worker)
            self.lost(worker)
        self.worker_views.touch(worker)
        self.changed()


def _longest(hello: wire.Hello) -> int:
    """Return the most tokens that one sequence can have on a worker."""
    return min(hello.max_context, hello.num_pages * hello.page_size)


def _prior(model: Path) -> WorkerRates | None:
    weights = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    return cold_rates(weights) if weights else None
