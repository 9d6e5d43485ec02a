import gzip
import random
from itertools import pairwise
from pathlib import Path

import pytest

from gateway.loadtest.arrivals import Planned, TraceError, read_trace, scaled, steady, until

TRACE = [Planned(0.0, 10, 1), Planned(1.0, 20, 2), Planned(4.0, 30, 3), Planned(4.0, 40, 4)]


def test_scaled_trace_keeps_the_proportions_of_its_gaps() -> None:
    planned = scaled(TRACE, rate=2.0, duration_s=4.0)
    assert [one.prompt_tokens for one in planned] == [10, 20, 30, 40, 10, 20, 30, 40]
    gaps = [b.at_s - a.at_s for a, b in pairwise(planned)]
    assert gaps[1] == pytest.approx(3 * gaps[0]) and gaps[2] == 0
    assert planned[0].at_s == 0 and planned[-1].at_s < 4.0
    assert scaled(TRACE, 2.0, 4.0, start=1)[0].prompt_tokens == 20
    assert len(scaled(TRACE[:1], rate=5.0, duration_s=2.0)) == 10
    with pytest.raises(ValueError, match="empty"):
        scaled([], 1.0, 1.0)


def test_steady_rates() -> None:
    constant = list(steady(4.0, 1.1, (7, 3), arrivals="constant", rng=random.Random(0)))
    assert constant == [Planned(0.25 * n, 7, 3) for n in (1, 2, 3, 4)]
    poisson = list(steady(50.0, 100.0, (7, 3), arrivals="poisson", rng=random.Random(0)))
    assert 4700 < len(poisson) < 5300
    gaps = [b.at_s - a.at_s for a, b in pairwise(poisson)]
    assert 0.36 < sum(gap > 0.02 for gap in gaps) / len(gaps) < 0.38  # e^-1 of the gaps are longer than their mean
    assert poisson == list(steady(50.0, 100.0, (7, 3), arrivals="poisson", rng=random.Random(0)))


def test_both_kinds_of_trace_are_read(tmp_path: Path) -> None:
    azure = tmp_path / "a.csv"
    azure.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:50.9951690,396,0\n2023-11-16 18:15:46.4951690,374,44\n"
    )
    assert read_trace(azure) == [Planned(0.0, 374, 44), Planned(pytest.approx(4.5), 396, 1)]
    mooncake = tmp_path / "m.jsonl.gz"
    with gzip.open(mooncake, "wt") as file:
        file.write('{"timestamp": 1500, "input_length": 6, "output_length": 5, "hash_ids": [1]}\n')
        file.write('{"timestamp": 3000, "input_length": 7, "output_length": 5, "hash_ids": [1]}\n')
    assert read_trace(mooncake) == [Planned(0.0, 6, 5), Planned(1.5, 7, 5)]
    assert until(read_trace(mooncake), 1.0) == [Planned(0.0, 6, 5)]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("t.csv", "a,b\n1,2\n", ":2: expected TIMESTAMP"),
        ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,2,3\n", ":2: expected TIMESTAMP"),
        ("t.csv", "", "no requests"),
        ("t.jsonl", '{"timestamp": 1}\n', ":1: expected timestamp"),
        ("t.jsonl", "no\n", ":1: expected timestamp"),
    ],
)
def test_bad_trace_is_reported_with_its_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(TraceError, match=said):
        read_trace(file)
