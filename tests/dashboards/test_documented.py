"""What can be observed, and how, is written down."""

import re
from pathlib import Path

from gateway.settings import TABLE

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "observability.md").read_text()


def test_every_setting_of_tracing_and_ledger_is_on_the_page() -> None:
    for variable in TABLE:
        if variable.startswith("OTEL_") or "SPAN" in variable or "LEDGER" in variable:
            assert variable in PAGE, variable


def test_every_metric_that_alerts_and_boards_name_is_on_the_page() -> None:
    files = [*(ROOT / "dashboards" / "grafana").glob("*.json"), ROOT / "dashboards" / "prometheus" / "rules.yaml"]
    names = {name for file in files for name in re.findall(r"headway_[a-z0-9_]+", file.read_text())}
    assert names
    for name in sorted(names):
        assert re.sub(r"_(bucket|sum|count)$", "", name) in PAGE, name


def test_pictures_exist_and_are_small() -> None:
    for name in re.findall(r"\]\((dashboard/[a-z-]+\.png)\)", PAGE):
        assert (ROOT / "docs" / name).stat().st_size < 200_000, name
