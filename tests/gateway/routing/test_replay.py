"""Recorded decisions under another policy, and the policies that are shipped."""

from pathlib import Path

import msgspec
import pytest

from gateway.cli import main
from gateway.ledger.ledger import SqliteLedger
from gateway.ledger.rows import DecisionRow, RequestRow
from gateway.policy.load import load_policy
from gateway.policy.schema import Policy
from gateway.routing.decision import Decision, Option, Rejected
from gateway.routing.replay import Recorded, replay

ROOT = Path(__file__).parents[3]
ENV = {"RESEARCH_KEY": "a", "PRODUCT_KEY": "b", "NIGHTLY_KEY": "c", "VENDOR_KEY": "d"}


@pytest.mark.parametrize("file", sorted((ROOT / "policies").glob("*.yaml")), ids=lambda file: file.name)
def test_every_shipped_policy_loads(file: Path) -> None:
    assert load_policy(file, ENV).routes


def option(tier: str, quality: float, usd: float) -> Option:
    return Option(
        worker=f"{tier}-0",
        model={"small": "pico", "large": "nano"}[tier],
        tier=tier,
        quality=quality,
        prompt_tokens=100,
        cached_tokens=0,
        ttft_s=0.01,
        finish_s=0.1,
        usd=usd,
        switch_usd=0.0,
        miss_probability=0.0,
        score_usd=usd,
    )


def decision(number: int, quality: float) -> Decision:
    """The small tier was chosen."""
    return Decision(
        id=f"dec-{number:03}",
        reason="cheapest_good_enough",
        chosen=option("small", quality, 1e-6),
        rejected=(Rejected(option=option("large", 1.0, 4e-6), reason="costs_more"),),
        rejected_by_reason={"costs_more": 1},
        route="default",
        quality_bar=0.3,
        typical_usd=4e-6,
    )


DECISIONS = [decision(i, 0.5 + 0.005 * i) for i in range(100)]


def policy_with(bar: float, mistake_cost: float = 0.0) -> Policy:
    policy = load_policy(ROOT / "policies" / "default.yaml", {})
    route = msgspec.structs.replace(policy.routes[0], quality_bar=bar, mistake_cost=mistake_cost)
    return msgspec.structs.replace(policy, routes=(route,))


def recorded(asked: str = "auto") -> list[Recorded]:
    return [Recorded(one, "development", f"run-{i}", asked) for i, one in enumerate(DECISIONS)]


def test_higher_quality_bar_moves_doubtful_requests() -> None:
    found = replay(recorded(), policy_with(0.75), policy_with(0.3))
    assert found == replay(recorded(), policy_with(0.75), policy_with(0.3))
    assert found.before.tiers == {"small": 100}
    assert found.after.tiers == {"small": 50, "large": 50}
    assert found.moved == 50
    assert found.after.usd == pytest.approx(50 * 1e-6 + 50 * 4e-6)
    assert found.after.quality > found.before.quality


def test_replay_uses_the_recorded_mistake_cost() -> None:
    # 1e-6 + 3 * 4e-6 * (1 - q) against 4e-6: even at q = 0.75
    found = replay(recorded(), policy_with(0.0, mistake_cost=3.0), policy_with(0.3))
    assert found.after.tiers["large"] == pytest.approx(50, abs=1)


def test_replay_keeps_requests_for_a_named_model() -> None:
    found = replay(recorded("small"), policy_with(0.99), policy_with(0.3))
    assert found.after.tiers == {"small": 100}
    assert found.moved == 0


def test_the_command_reads_a_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.db")
    zero = {field.name: 0.0 for field in msgspec.structs.fields(RequestRow) if field.type is float}
    zero |= {field.name: 0 for field in msgspec.structs.fields(RequestRow) if field.type is int}
    words = {field.name: "" for field in msgspec.structs.fields(RequestRow) if field.type is str}
    for one in DECISIONS:
        said = {"decision": one.id, "tenant": "development", "run": one.id, "asked": "auto", "slo_met": True}
        ledger.record(msgspec.convert(zero | words | said, RequestRow))
        ledger.record(DecisionRow(id=one.id, at=1.0, body=msgspec.json.encode(one)))
    ledger.close()
    policies = ROOT / "policies"
    command = ["policy", "replay", str(policies / "quality-first.yaml"), "--ledger", str(tmp_path / "ledger.db")]
    assert main([*command, "--policy", str(policies / "default.yaml")], {}) == 0
    out = capsys.readouterr().out
    assert "100 (100.0%)" in out
    assert "requests go to another worker" in out
    assert main(["policy", "replay", str(policies / "default.yaml"), "--ledger", str(tmp_path / "no.db")], {}) == 1
    assert main(["policy", "diff", str(policies / "default.yaml"), str(policies / "quality-first.yaml")], {}) == 1
