"""What a worker holds in its host tier counts as cached, less what its reload takes."""

from pathlib import Path

from msgspec import structs

from backends.wire import PAGE_HASH_BYTES, Cache
from gateway.fleet.fleet import Fleet
from gateway.policy.load import load_policy
from gateway.scheduling.kv_index import reload_credit
from tests.backends.fakes import hello, limits
from tests.gateway.scheduling.test_latency_model import load

POLICY = Path(__file__).parents[3] / "policies" / "default.yaml"
NAMES = [number.to_bytes(PAGE_HASH_BYTES, "big") for number in range(10)]


def test_host_reload_costs_between_zero_and_a_prefill() -> None:
    assert reload_credit(1000, reload_s_per_token=0.0, prefill_s_per_token=1e-3) == 1000
    assert reload_credit(1000, reload_s_per_token=2e-4, prefill_s_per_token=1e-3) == 800
    assert reload_credit(1000, reload_s_per_token=2e-3, prefill_s_per_token=1e-3) == 0
    assert reload_credit(1000, reload_s_per_token=2e-3, prefill_s_per_token=0.0) == 0


def test_host_pages_behind_the_resident_ones_are_credited_and_forgotten_with_their_worker() -> None:
    fleet = Fleet(load_policy(POLICY, {}), env={}, progress=lambda line: None)
    worker, other = list(fleet.clients)[:2]
    client, size = fleet.clients[worker], 4
    client.hello = hello(limits(page_size=size))
    prefill = fleet.predictors[worker].rates.prefill_s_per_token
    client.load = structs.replace(load(), reload_s_per_token=prefill / 4)
    device, host = b"".join(NAMES[:3]), b"".join(NAMES[:8])
    assert fleet._cached(worker, Cache(sequence=0, stored=device, reset=True))
    assert fleet.cached_tokens(worker, NAMES) == 3 * size
    assert fleet._cached(worker, Cache(sequence=1, host_stored=host))
    assert fleet.cached_tokens(worker, NAMES) == 3 * size + 5 * size * 3 // 4
    assert fleet.holders(NAMES) == {worker: 27} and fleet.cached_tokens(other, NAMES) == 0
    # Evicted from the device alone: all of it comes from the host. Then from there too.
    assert fleet._cached(worker, Cache(sequence=2, removed=device))
    assert fleet.cached_tokens(worker, NAMES) == 8 * size * 3 // 4
    assert fleet._cached(worker, Cache(sequence=3, host_removed=b"".join(NAMES[4:])))
    assert fleet.cached_tokens(worker, NAMES) == 4 * size * 3 // 4
    # A worker that found three pages says so, and what the index claimed behind them is taken back; later pages are not.
    assert fleet._cached(worker, Cache(sequence=4, host_stored=b"".join(NAMES[5:6])))
    fleet.repair(worker, NAMES, 3 * size, since=3)
    assert [fleet.host_kv_index.cached_tokens(worker, [name], 1) for name in NAMES[:7]] == [1, 1, 1, 0, 0, 1, 0]
    client.load = None  # as a link that was lost
    fleet._state_changed(worker)
    client.load = load()
    assert fleet.cached_tokens(worker, NAMES) == 0 == len(fleet.host_kv_index)
    fleet._folder.close()
