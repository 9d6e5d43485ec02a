"""Every query of every board names metrics that a gateway or a worker exports."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
BOARDS = sorted((ROOT / "dashboards" / "grafana").glob("*.json"))
_EXPORTERS = ("gateway/telemetry/metrics.py", "gateway/pipeline/gauges.py", "backends/worker/metrics.py")
_SUFFIXES = r"(_total|_bucket|_sum|_count)$"


def exported() -> set[str]:
    text = "".join((ROOT / name).read_text() for name in _EXPORTERS)
    return set(re.findall(r'"((?:headway|gen_ai|vllm)[a-z0-9_:]+)"', text))


@pytest.mark.parametrize("board", BOARDS, ids=lambda path: path.stem)
def test_every_query_names_an_exported_metric(board: Path) -> None:
    queries = [t["expr"] for panel in json.loads(board.read_text())["panels"] for t in panel["targets"]]
    assert queries
    for query in queries:
        names = re.findall(r"\b(?:headway|gen_ai|vllm)[a-z0-9_:]+", query)
        assert names, query
        assert {re.sub(_SUFFIXES, "", name) for name in names} <= exported(), query


def test_grafana_board_exists() -> None:
    assert BOARDS
