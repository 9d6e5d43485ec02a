import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Forbidden, UnknownModel
from gateway.policy.load import PolicyError, load_policy, missing_files, policy_json_schema
from gateway.policy.routes import candidates_for, find_route
from gateway.policy.schema import Policy

DEFAULT = Path(__file__).parents[3] / "policies" / "default.yaml"
GOOD = """\
version: 1
devices:
  cpu: {usd_per_hour: 0.2}
tiers: [small, large]
models:
  pico: {path: models/pico, tier: small}
  nano: {path: /abs/nano, tier: large}
workers:
  pico-0: {model: pico, device: cpu}
  nano-0: {model: nano, device: cpu}
tenants:
  acme:
    keys: [key-a]
    models: [small]
  globex: {keys: [key-b]}
routes:
  - name: tools
    match: {tools: true, tenant: [globex]}
    candidates: [large]
  - name: long
    match: {min_prompt_tokens: 1000}
    candidates: [nano]
  - name: default
    candidates: [small, large]
"""


def load(tmp_path: Path, text: str, **env: str) -> Policy:
    file = tmp_path / "lab.yaml"
    file.write_text(text)
    return load_policy(file, env)


def problems(tmp_path: Path, text: str, **env: str) -> list[tuple[int, str, str]]:
    with pytest.raises(PolicyError) as caught:
        load(tmp_path, text, **env)
    return [(problem.line, problem.path, problem.message) for problem in caught.value.problems]


def test_the_default_policy_loads() -> None:
    policy = load_policy(DEFAULT, {})
    assert policy.tiers == ("small", "large")
    assert Path(policy.models["pico"].path).is_absolute()


def test_paths_start_at_the_policy_file(tmp_path: Path) -> None:
    policy = load(tmp_path, GOOD + "router: quality.json\n")
    assert policy.models["pico"].path == str(tmp_path / "models/pico")
    assert policy.models["nano"].path == "/abs/nano"
    assert policy.router == str(tmp_path / "quality.json")
    assert len(missing_files(policy)) == 3


def test_all_problems_are_reported_at_once_with_their_lines(tmp_path: Path) -> None:
    text = GOOD.replace("usd_per_hour: 0.2", "usd_per_hour: -1").replace("candidates: [nano]", "candidats: [nano]")
    text = text.replace("device: cpu}\ntenants", "device: gpu}\ntenants").replace("version: 1", "version: 2")
    found = problems(tmp_path, text)
    assert [(line, path) for line, path, _ in found] == [
        (1, "version"),
        (3, "devices.cpu.usd_per_hour"),
        (20, "routes[1]"),
        (22, "routes[1].candidats"),
    ]
    assert 'did you mean "candidates"?' in found[3][2]


def test_references_are_checked_with_a_hint(tmp_path: Path) -> None:
    text = GOOD.replace("model: pico,", "model: pica,").replace("candidates: [small, large]", "candidates: [smal]")
    found = problems(tmp_path, text)
    assert (9, "workers.pico-0.model", 'there is no model "pica" (did you mean "pico"?)') in found
    assert (24, "routes[2].candidates[0]", 'there is no tier or model "smal" (did you mean "small"?)') in found


def test_a_wrong_value_with_a_default_does_not_hide_wrong_references(tmp_path: Path) -> None:
    text = GOOD.replace("device: cpu}\n  nano", "device: cup, threads: none}\n  nano")
    assert [path for _, path, _ in problems(tmp_path, text)] == ["workers.pico-0.device", "workers.pico-0.threads"]


def test_a_key_written_twice_is_an_error_that_names_both_lines(tmp_path: Path) -> None:
    found = problems(tmp_path, GOOD.replace("  nano-0:", "  pico-0: {model: nano, device: cpu}\n  nano-0:"))
    assert found == [(10, "workers.pico-0", "written twice, first on line 9: remove one")]


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("", 1, "empty"),
        ("version: [1", 1, "not YAML"),
        ("a: b: c", 1, "not YAML"),
        ("- 1", 1, "keys and values"),
        ("version: 1\ntiers: !!python/object:os.system x", 2, "expected a list"),
        ("x: &a [*a]", 1, "unknown key"),
        ("[" * 5000, 1, "not YAML"),
        ("? [a]\n: b", 1, "a key must be a word"),
    ],
)
def test_malformed_policy_is_reported_with_its_line(tmp_path: Path, text: str, line: int, word: str) -> None:
    found = problems(tmp_path, text)
    assert any(word in message and at == line for at, _, message in found), found


@given(st.text(alphabet="ab:[]{}-,&*!|>'\"#?%@ \n\t0${}", max_size=60))
def test_no_text_raises_anything_but_a_policy_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(text)
    with pytest.raises(PolicyError):
        load_policy(file, {})


def test_missing_policy_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot be read"):
        load_policy(tmp_path / "none.yaml", {})


def test_variables_are_taken_from_the_environment(tmp_path: Path) -> None:
    text = GOOD.replace("key-a", '"${KEY}-x"') + 'listen: {port: "${PORT}", host: "${HOST}"}\n'
    policy = load(tmp_path, text, KEY="12345", PORT="9000", HOST="127.0.0.1")
    assert policy.tenants["acme"].keys == ("12345-x",)
    assert policy.listen.port == 9000


def test_a_variable_that_is_not_set_is_an_error_and_no_secret_is_shown(tmp_path: Path) -> None:
    text = GOOD.replace("key-a", '"${KEY}"') + 'listen: {port: "${PORT}"}\n'
    found = problems(tmp_path, text, PORT="hunter2")
    assert (13, "tenants.acme.keys[0]", "the environment variable KEY is not set") in found
    assert all("hunter2" not in message for _, _, message in found)


def test_unquoted_braces_are_explained(tmp_path: Path) -> None:
    found = problems(tmp_path, GOOD + "listen: {port: ${PORT}}\n", PORT="1")
    assert 'put "${...}" in quotes' in found[0][2]


def test_number_in_place_of_text_is_an_error_that_asks_for_quotes(tmp_path: Path) -> None:
    found = problems(tmp_path, GOOD.replace("keys: [key-a]", "keys: [1234]"))
    assert found[0][2].endswith("put it in quotes")


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("tiers: [small, large]", "tiers: [small, large, small]", "tiers[2]"),
        ("keys: [key-b]", "keys: [key-a]", "tenants.globex.keys[0]"),
        ("tenants:\n", f"keys: {{ci: {{tenant: nobody, hash: 'sha256:{64 * '0'}'}}}}\ntenants:\n", "keys.ci.tenant"),
        ("tenants:\n", "keys: {ci: {tenant: acme, hash: 'sha256:0'}}\ntenants:\n", "keys.ci.hash"),
        ("name: long", "name: tools", "routes[1].name"),
        ("  nano: {path", "  large: {path", "models.large"),
        ("min_prompt_tokens: 1000", "min_prompt_tokens: 9, max_prompt_tokens: 3", "routes[1].match.min_prompt_tokens"),
        ("candidates: [small, large]", "candidates: [small, large]\n    slo: instant", "routes[2].slo"),
        ("model: pico, device: cpu", "model: pico, device: cpu, share: 1", "workers.nano-0"),
        ("model: pico, device: cpu", "model: pico, device: cpu, url: localhost:1", "workers.pico-0.url"),
        ("model: pico, device: cpu", "model: pico, device: cpu, url: ws://x:1, threads: 2", "workers.pico-0.threads"),
    ],
)
def test_inconsistent_policy_is_an_error(tmp_path: Path, old: str, new: str, path: str) -> None:
    assert old in GOOD
    assert path in [found for _, found, _ in problems(tmp_path, GOOD.replace(old, new))]


def test_without_keys_only_loopback_may_be_listened_on(tmp_path: Path) -> None:
    keyless = GOOD.replace("keys: [key-a]", "keys: []").replace("{keys: [key-b]}", "{}")
    assert load(tmp_path, keyless + "listen: {host: '::1'}\n")
    assert load(tmp_path, GOOD + "listen: {host: 0.0.0.0}\n")
    assert [path for _, path, _ in problems(tmp_path, keyless + "listen: {host: 0.0.0.0}\n")] == ["listen.host"]
    assert load(tmp_path, keyless + "listen: {host: 0.0.0.0, require_key: true}\n")


def test_the_json_schema_is_strict_and_current() -> None:
    schema = policy_json_schema()
    assert schema["$defs"]["Route"]["additionalProperties"] is False
    shipped = DEFAULT.parent / "policy.schema.json"
    assert json.loads(shipped.read_text()) == schema, "run `headway policy schema > policies/policy.schema.json`"


def test_the_first_route_that_matches_is_taken(tmp_path: Path) -> None:
    policy = load(tmp_path, GOOD)

    def route(asked: str = "auto", tenant: str = "globex", has_tools: bool = False, prompt_tokens: int = 10) -> str:
        return find_route(policy, asked=asked, tenant=tenant, has_tools=has_tools, prompt_tokens=prompt_tokens).name

    assert route() == "default"
    assert route(has_tools=True) == "tools"
    assert route(has_tools=True, tenant="acme") == "default"
    assert route(prompt_tokens=1000) == "long"
    with pytest.raises(UnknownModel):
        route("gpt-9")
    with pytest.raises(Forbidden):
        route("nano", tenant="acme")
    assert route("pico", tenant="acme") == "default"


def test_candidates_are_offered_by_the_route_and_allowed_to_the_tenant(tmp_path: Path) -> None:
    policy = load(tmp_path, GOOD)
    default, long = policy.routes[2], policy.routes[1]
    assert candidates_for(policy, default, tenant="globex") == ("pico", "nano")
    assert candidates_for(policy, default, tenant="acme") == ("pico",)
    assert candidates_for(policy, long, tenant="acme") == ()
