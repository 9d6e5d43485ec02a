"""Upstreams in a policy file, and in a decision."""

from pathlib import Path

import pytest

from gateway.ledger.policy_record import shown
from gateway.policy.load import PolicyError, load_policy
from gateway.routing.decide import decide
from gateway.routing.decision import RoutingRequest, WorkerView

TEXT = """
version: 1
tiers: [small, large]
upstreams:
  vendor: {url: "https://a.example/v1", model: big, tier: large, key: "${KEY}", prices: {input: 2, output: 10, cached: 0.5}}
routes: [{name: default, candidates: [big]}]
"""


def load(folder: Path, text: str) -> object:
    (folder / "p.yaml").write_text(text)
    return load_policy(folder / "p.yaml", {"KEY": "from the environment"})


def test_a_policy_of_upstreams_alone_is_one(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(TEXT)
    policy = load_policy(tmp_path / "p.yaml", {"KEY": "from the environment"})
    assert policy.upstreams["vendor"].key == "from the environment"
    assert policy.tier_by_model() == {"big": "large"}
    assert shown(policy)["upstreams"]["vendor"]["key"] == "(not shown)"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("tier: large", "tier: lrage", 'there is no tier "lrage"'),
        ("model: big", "model: small", "is also a tier"),
        ("https://", "ftp://", "upstreams.vendor.url"),
        ("input: 2,", "", "input"),
        (
            "routes:",
            "models: {big: {path: x, tier: small}}\nroutes:",
            '"big" is in tier "small" elsewhere',
        ),
    ],
)
def test_problem_of_an_upstream_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(PolicyError) as error:
        load(tmp_path, TEXT.replace(old, new))
    assert said in str(error.value)


def test_decision_compares_upstream_prices_with_worker_time(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(TEXT)
    prices = load_policy(tmp_path / "p.yaml", {"KEY": "k"}).upstreams["vendor"].prices

    def view(name: str, usd_per_s: float) -> WorkerView:
        return WorkerView(
            worker=name,
            model="big",
            tier="large",
            healthy=True,
            max_context=8192,
            usd_per_s=usd_per_s,
            max_sequences=8,
            wait_s=0.0,
            overhead_s=0.01,
            prefill_s_per_token=1e-4,
            tpot_s=0.01,
            decode_device_s_per_token=0.01,
            prices=prices if name == "vendor" else None,
        )

    routing_request = RoutingRequest(
        asked="auto",
        candidates=("big",),
        prompt_tokens={"vendor": 1000, "ours": 1000},
        cached_tokens={"vendor": 600},
        max_output_tokens=100,
        expected_output_tokens=50.0,
        quality={},
        quality_bar=0.0,
    )
    for usd_per_s, wins in ((1e-6, "ours"), (1.0, "vendor")):
        decision = decide(routing_request, [view("vendor", 0.0), view("ours", usd_per_s)], decision_id="d")
        assert decision.chosen.worker == wins
        options = {one.worker: one for one in (decision.chosen, *(rejected.option for rejected in decision.rejected))}
        assert options["vendor"].usd == pytest.approx((400 * 2 + 600 * 0.5 + 50 * 10) / 1e6)
