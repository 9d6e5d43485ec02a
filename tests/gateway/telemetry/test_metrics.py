from gateway.telemetry.metrics import FOLDED_AT, Metrics
from tests.gateway.telemetry.test_tracing import entry


def test_scrape_at_any_time_counts_every_request() -> None:
    metrics = Metrics()
    for number in (1, FOLDED_AT - 1, FOLDED_AT, FOLDED_AT + 1):
        before = _requests(metrics)
        for _ in range(number):
            metrics.record(entry(None))
        assert _requests(metrics) == before + number


def _requests(metrics: Metrics) -> float:
    lines = metrics.render().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("headway_requests_total{"))
