from gateway.fleet.approx_kv import ApproxKvIndex
from gateway.fleet.circuit_breaker import CircuitBreaker


def test_consecutive_failures_open_the_breaker_and_one_success_closes_it() -> None:
    breaker = CircuitBreaker(failures=2, cooldown_s=10.0)
    breaker.failed(0.0)
    breaker.succeeded()
    breaker.failed(1.0)
    assert breaker.may_try(1.0)
    breaker.failed(2.0)
    assert not breaker.may_try(11.9)
    assert breaker.may_try(12.0)
    breaker.trying()
    assert (breaker.state, breaker.may_try(12.0)) == ("probing", False)
    breaker.succeeded()
    assert (breaker.state, breaker.may_try(12.0)) == ("closed", True)


def test_failed_probe_reopens_the_breaker_and_an_aborted_one_allows_another() -> None:
    breaker = CircuitBreaker(failures=1, cooldown_s=10.0)
    breaker.failed(0.0)
    breaker.trying()
    breaker.gave_up()
    assert breaker.may_try(10.0)
    breaker.trying()
    breaker.failed(10.0)
    assert not breaker.may_try(19.9)


def test_residency_is_expected_only_after_usage_has_shown_it() -> None:
    cache = ApproxKvIndex(keep_s=100.0)
    cache.learn("a", prompt_tokens=1000, cached_tokens=0, now=0.0)
    assert cache.expect("a", 1.0) == 0
    cache.learn("a", prompt_tokens=1500, cached_tokens=900, now=1.0)
    assert cache.expect("a", 2.0) == int(0.9 * 1500)
    assert cache.expect("b", 2.0) == 0
    assert cache.expect("a", 102.0) == 0


def test_approximate_index_forgets_the_oldest_chain() -> None:
    cache = ApproxKvIndex(keep_s=100.0, max_chains=2)
    for chain in "abc":
        cache.learn(chain, prompt_tokens=100, cached_tokens=0, now=0.0)
    cache.learn("a", prompt_tokens=100, cached_tokens=100, now=0.0)
    assert cache.share == 0.0
