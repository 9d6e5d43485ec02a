from pathlib import Path

import msgspec
import pytest

from gateway.ledger.policy_record import policy_row
from gateway.policy.diff import diff_policies
from gateway.policy.load import PolicyError, load_files, load_policy
from gateway.policy.secret_files import CREDENTIALS, secrets_of
from tests.builders import policy_text

SECRET = "hw-0123456789abcdefghij"
MORE = """
tenants: {red: {key_files: [red.key]}}
upstreams:
  vendor: {url: 'https://vendor.example/v1', model: afar, tier: large, prices: {input: 1, output: 1}, key_file: vendor.key}
"""
WORKER = "  w: {model: pico, device: cpu, url: 'ws://worker.example:1', token_file: link.token}"


def written(folder: Path, more: str = MORE, worker: str = WORKER) -> Path:
    file = folder / "policy.yaml"
    file.write_text(policy_text(worker, more=more))
    return file


def secrets(folder: Path) -> None:
    for name in ("red.key", "vendor.key", "link.token"):
        (folder / name).write_text(f"{SECRET}-{name}\n")


def test_secrets_come_from_files_beside_the_policy(tmp_path: Path) -> None:
    secrets(tmp_path)
    loaded = load_files(written(tmp_path), {})
    policy = loaded.policy
    assert policy.tenants["red"].keys == (f"{SECRET}-red.key",)
    assert policy.upstreams["vendor"].key == f"{SECRET}-vendor.key"
    assert policy.workers["w"].token == f"{SECRET}-link.token"
    assert {path.name for path in loaded.files} == {"policy.yaml", "red.key", "vendor.key", "link.token"}
    assert len([*secrets_of(policy)]) == 3


def test_secrets_come_from_the_credentials_of_systemd_first(tmp_path: Path) -> None:
    (tmp_path / "credentials").mkdir()
    secrets(tmp_path)
    (tmp_path / "credentials" / "vendor.key").write_text("from-systemd")
    policy = load_policy(written(tmp_path), {CREDENTIALS: str(tmp_path / "credentials")})
    assert policy.upstreams["vendor"].key == "from-systemd"
    assert policy.tenants["red"].keys == (f"{SECRET}-red.key",)


@pytest.mark.parametrize("content", [None, "", "\n", "a\nb", "x" * 5_000, "\x00\x01"])
def test_unusable_file_is_a_problem_that_does_not_quote_it(tmp_path: Path, content: str | None) -> None:
    secrets(tmp_path)
    (tmp_path / "vendor.key").unlink()
    if content is not None:
        (tmp_path / "vendor.key").write_text(content)
    with pytest.raises(PolicyError) as raised:
        load_policy(written(tmp_path), {})
    (line,) = str(raised.value).splitlines()
    assert "upstreams.vendor.key_file: vendor.key" in line and "a\nb" not in line and "xxx" not in line


def test_key_beside_its_file_is_a_problem(tmp_path: Path) -> None:
    secrets(tmp_path)
    with pytest.raises(PolicyError, match="stands beside `key`"):
        load_policy(written(tmp_path, MORE.replace("key_file: vendor.key", "key_file: vendor.key, key: abc")), {})


def test_secrets_are_in_no_record_and_no_difference(tmp_path: Path) -> None:
    secrets(tmp_path)
    old = load_policy(written(tmp_path), {})
    (tmp_path / "vendor.key").write_text("another-secret-key")
    new = load_policy(written(tmp_path), {})
    changes = "\n".join(map(str, diff_policies(old, new)))
    assert "upstreams.vendor.key" in changes
    for text in (changes, policy_row(new, 0.0).body.decode(), msgspec.json.encode(policy_row(old, 0.0)).decode()):
        assert SECRET not in text and "another-secret-key" not in text and str(tmp_path) not in text


@pytest.mark.parametrize("keys", ["hunter2-secret", "{a: hunter2-secret}", "[{a: hunter2-secret}]", "[[hunter2-secret]]"])
def test_problem_of_a_key_does_not_repeat_it(tmp_path: Path, keys: str) -> None:
    with pytest.raises(PolicyError) as raised:
        load_policy(written(tmp_path, f"tenants: {{red: {{keys: {keys}}}}}", "  w: {model: pico, device: cpu}"), {})
    assert "hunter2" not in str(raised.value)
