from pathlib import Path

import msgspec
import pytest

from gateway.errors import Forbidden
from gateway.policy.diff import diff_policies, policy_hash
from gateway.policy.load import PolicyError, load_files, load_policy
from gateway.policy.reload import Audited, AuditLog, Reloader
from gateway.policy.routes import find_route
from gateway.policy.schema import Policy

BASE = """
version: 1
devices: {cpu: {usd_per_hour: 0.2}}
tiers: [small, large]
models: {a: {path: a, tier: small}, b: {path: b, tier: large}}
workers: {a-0: {model: a, device: cpu}, b-0: {model: b, device: cpu}}
tenants: {one: {keys: ["${KEY}"]}}
"""
ROUTES = "routes: [{name: rest, candidates: [small, large]}]\n"
ENV = {"KEY": "secret-key-1"}


def loaded(folder: Path, routes: str = ROUTES, **files: str) -> Policy:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    (folder / "policy.yaml").write_text(BASE + routes)
    return load_policy(folder / "policy.yaml", ENV)


def route(policy: Policy, run: str = "r", **headers: str) -> str:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return find_route(policy, asked="auto", tenant="one", has_tools=False, prompt_tokens=9, headers=sent, run=run).name


def test_headers_are_matched_by_pattern_and_keys_exactly(tmp_path: Path) -> None:
    policy = loaded(
        tmp_path,
        """
routes:
  - {name: beta, candidates: [large], match: {headers: {X-Stage: "beta-*"}}}
  - {name: mine, candidates: [large], match: {key: ["${KEY}"]}}
  - {name: rest, candidates: [small]}
""",
    )
    assert route(policy, x_stage="beta-2") == "beta"
    assert route(policy, x_stage="alpha") == "rest"
    assert route(policy, authorization="Bearer secret-key-1") == "mine"
    assert route(policy, x_api_key="secret-key-1") == "mine"
    assert route(policy, x_api_key="secret-key-2") == "rest"


def test_run_stays_in_one_arm_of_a_split_and_weights_hold(tmp_path: Path) -> None:
    split = "{canary: {share: 0.1, candidates: [large]}, bold: {share: 0.3, quality_bar: 0.5}}"
    policy = loaded(tmp_path, f"routes: [{{name: rest, candidates: [small, large], split: {split}}}]\n")
    names = [route(policy, run=f"run-{i}") for i in range(4000)]
    assert names == [route(policy, run=f"run-{i}") for i in range(4000)]
    assert names.count("rest/canary") == pytest.approx(400, abs=80)
    assert names.count("rest/bold") == pytest.approx(1200, abs=120)
    canary = next(f"run-{i}" for i, name in enumerate(names) if name == "rest/canary")
    arm = find_route(policy, asked="auto", tenant="one", has_tools=False, prompt_tokens=9, run=canary)
    assert arm.candidates == ("large",)


def test_including_file_overrides_and_included_routes_come_after(tmp_path: Path) -> None:
    policy = loaded(
        tmp_path,
        "include: [more.yaml]\nroutes: [{name: mine, candidates: [large], match: {tools: true}}]\n",
        more="devices: {cpu: {usd_per_hour: 9}, gpu: {usd_per_hour: 2}}\nroutes: [{name: rest, candidates: [small]}]\n",
    )
    assert policy.devices["cpu"].usd_per_hour == 0.2
    assert policy.devices["gpu"].usd_per_hour == 2
    assert [one.name for one in policy.routes] == ["mine", "rest"]


def test_problems_of_an_included_file_carry_its_name_and_line(tmp_path: Path) -> None:
    with pytest.raises(PolicyError) as caught:
        loaded(
            tmp_path, ROUTES + "include: [more.yaml, gone.yaml]\n", more="\n\nslo: {quick: {ttft: 1}}\ninclude: [policy.yaml]\n"
        )
    text = str(caught.value)
    assert "more.yaml:3: slo.quick.ttft: unknown key" in text
    assert "more.yaml:4: include: policy.yaml includes itself" in text
    assert "gone.yaml:1: cannot be read" in text


def test_splits_budgets_and_fallbacks_are_checked(tmp_path: Path) -> None:
    with pytest.raises(PolicyError) as caught:
        loaded(
            tmp_path,
            """
budgets: {idle: {per: run}}
routes:
  - name: rest
    candidates: [small]
    fallbacks: [larg]
    budgets: [dayly]
    split: {x: {share: 0.7}, y: {share: 0.7, candidates: [smal]}}
""",
        )
    text = str(caught.value)
    for part in ('"larg" (did you mean "large"?)', '"dayly"', "add up to 1.4", '"smal"', "limits nothing"):
        assert part in text


def test_a_difference_names_values_and_hides_secrets(tmp_path: Path) -> None:
    old = loaded(tmp_path)
    new = loaded(
        tmp_path, "routes: [{name: first, candidates: [large], match: {key: [abc]}}, {name: rest, candidates: [small]}]\n"
    )
    lines = [str(change) for change in diff_policies(old, new)]
    assert "~ routes in order: rest -> first, rest" in lines
    assert '~ routes[rest].candidates: ["small","large"] -> ["small"]' in lines
    assert not any("abc" in line for line in lines)
    assert diff_policies(old, old) == []
    assert policy_hash(old) != policy_hash(new)


class Applied:
    def __init__(self) -> None:
        self.policies: list[Policy] = []
        self.refuse = False

    def __call__(self, policy: Policy) -> None:
        if self.refuse:
            raise ValueError("the artefact is damaged")
        self.policies.append(policy)


def audited(path: Path) -> list[Audited]:
    return [msgspec.json.decode(line, type=Audited) for line in path.read_bytes().splitlines()] if path.exists() else []


def test_a_reload_is_whole_or_not_at_all_and_kept(tmp_path: Path) -> None:
    policy, applied, log = loaded(tmp_path), Applied(), tmp_path / "audit.jsonl"
    file = tmp_path / "policy.yaml"
    reloader = Reloader(file, policy, env=ENV, apply=applied, audit=AuditLog(log))
    assert not reloader.look(1.0)
    file.write_text(BASE + "routes: [{name: rest, candidates: [small], quality: 1}, {name: other}]\n")
    assert not reloader.look(2.0)
    assert not applied.policies
    file.write_text(BASE.replace("a-0", "a-9") + ROUTES)
    assert not reloader.reload("signal", 3.0)
    file.write_text(BASE + "routes: [{name: rest, candidates: [small]}]\n")
    assert reloader.look(4.0)
    assert applied.policies == [reloader.policy]
    applied.refuse = True
    file.write_text(BASE + ROUTES)
    assert not reloader.look(5.0)
    first, second, third, fourth = audited(log)
    assert [one.accepted for one in (first, second, third, fourth)] == [False, False, True, False]
    assert len(first.problems) == 2
    assert "workers changed, which needs a restart" in second.problems[0]
    assert (second.who, third.who) == ("signal", "file")
    assert third.changes == ('~ routes[rest].candidates: ["small","large"] -> ["small"]',)
    assert third.hash_before != third.hash == fourth.hash == policy_hash(reloader.policy)
    assert fourth.problems == ("the artefact is damaged",)


def test_a_change_of_an_included_file_counts(tmp_path: Path) -> None:
    policy = loaded(tmp_path, "include: [more.yaml]\n", more=ROUTES)
    assert len(load_files(tmp_path / "policy.yaml", ENV).files) == 2
    reloader = Reloader(tmp_path / "policy.yaml", policy, env=ENV, apply=Applied(), audit=AuditLog(None))
    (tmp_path / "more.yaml").write_text("routes: [{name: other, candidates: [large]}]\n")
    assert reloader.look(1.0)
    assert reloader.policy.routes[0].name == "other"


def test_request_without_a_matching_route_is_refused(tmp_path: Path) -> None:
    policy = loaded(tmp_path, "routes: [{name: only, candidates: [small], match: {headers: {x: '1'}}}]\n")
    with pytest.raises(Forbidden):
        route(policy)
