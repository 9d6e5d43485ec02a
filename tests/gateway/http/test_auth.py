"""Keys over HTTP: hashes in the policy, keys of the store made and revoked while the gateway runs."""

import asyncio
import hashlib
from pathlib import Path

import msgspec
import pytest

from gateway.cli import main
from gateway.errors import Unauthorized
from gateway.http.auth import KeylessBindError, Keys, check_bind
from gateway.ledger.key_store import stored_keys
from gateway.ledger.ledger import SqliteLedger
from gateway.ledger.policy_record import shown
from gateway.ledger.rows import RequestRow
from gateway.policy.load import load_policy
from gateway.policy.schema import Listen
from tests.builders import policy_text
from tests.served import Served, ask, serve, until

HASH = f"sha256:{hashlib.sha256(b'hw-secret').hexdigest()}"


async def status_with(served: Served, key: str, path: str = "/v1/chat/completions") -> tuple[int, dict[str, object]]:
    headers = {"authorization": f"Bearer {key}"}
    async with served.http.post(served.url + path, json=ask(), headers=headers) as answer:
        return answer.status, await answer.json()


async def test_hash_in_the_policy_admits_its_key_under_its_name(tmp_path: Path) -> None:
    nightly = "  - {name: nightly, match: {key: [ci]}, candidates: [small]}"
    more = f"tenants: {{acme: {{keys: [plain]}}}}\nkeys: {{ci: {{tenant: acme, hash: '{HASH}'}}}}"
    async with serve(tmp_path, first_routes=nightly, more=more) as served:
        assert (await status_with(served, "plain"))[0] == 200
        assert (await status_with(served, "hw-secret"))[0] == 200
        for wrong in ("hw-secret2", HASH, HASH.removeprefix("sha256:"), "ci", 9999 * "x"):
            status, body = await status_with(served, wrong)
            assert (status, body["error"]["code"]) == (401, "invalid_api_key")  # type: ignore[index]
        status, body = await status_with(served, "wrong", "/v1/messages")
        assert (status, body["error"]["type"]) == (401, "authentication_error")  # type: ignore[index]
        rows = [row for row in served.ledger.rows if isinstance(row, RequestRow) and row.outcome == "ok"]
        assert [(row.tenant, row.key_id, row.route) for row in rows][1:] == [("acme", "ci", "nightly")]
        assert rows[0].route == "default"
        assert HASH not in msgspec.json.encode(shown(served.gateway.policy)).decode()


async def test_a_key_of_the_store_works_at_once_and_is_refused_soon_after_it_was_revoked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ledger.db"
    ledger = ["--ledger", str(file)]
    more = "tenants: {acme: {keys: [plain]}, globex: {}}"
    async with serve(tmp_path, more=more, ledger=SqliteLedger(file)) as served:
        make = ["keys", "create", "--tenant", "globex", "--policy", str(tmp_path / "policy.yaml"), *ledger]
        assert await asyncio.to_thread(main, [*make, "--requests-per-minute", "60"], {}) == 0
        key = capsys.readouterr().out.strip()
        await until_status(served, key, 200)
        served.gateway._record_key_uses()
        await until(lambda: bool(served.gateway.ledger.read("SELECT 1 FROM key_uses")))
        listed = await shown_keys(ledger, capsys)
        assert "never" not in listed
        assert all(part in listed for part in ("globex", key[:9], " 60 "))
        assert key not in listed
        assert await asyncio.to_thread(main, ["keys", "revoke", key, *ledger], {}) == 0
        await until_status(served, key, 401)
        assert (await status_with(served, "plain"))[0] == 200
        assert "revoked" in await shown_keys(ledger, capsys)


async def until_status(served: Served, key: str, status: int) -> None:
    async with asyncio.timeout(20):
        while (await status_with(served, key))[0] != status:  # noqa: ASYNC110  another process's change is waited for
            await asyncio.sleep(0.05)


async def shown_keys(ledger: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert await asyncio.to_thread(main, ["keys", "list", *ledger], {}) == 0
    return capsys.readouterr().out


def test_key_commands_name_missing_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(policy_text("  nano-0: {model: nano, device: cpu}", more="tenants: {acme: {}}"))
    ledger = ["--ledger", str(tmp_path / "ledger.db")]
    create = ["keys", "create", "--policy", str(policy), "--tenant"]
    assert main([*create, "acmee", *ledger], {}) == 1
    assert 'did you mean "acme"' in capsys.readouterr().err
    assert main([*create, "acme"], {}) == 1
    assert "HEADWAY_LEDGER" in capsys.readouterr().err
    assert main(["keys", "revoke", "key-1", *ledger], {}) == 1
    assert "no such key" in capsys.readouterr().err
    assert main(["keys", "list", *ledger], {}) == 0
    assert "there are no keys" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*create, "acme", *ledger, "--tokens-per-minute", "0"], {})


def test_store_with_revoked_keys_or_require_key_admits_no_request_without_a_key(tmp_path: Path) -> None:
    file, ledger = tmp_path / "policy.yaml", tmp_path / "ledger.db"
    file.write_text(policy_text("  nano-0: {model: nano, device: cpu}", more="tenants: {acme: {}}"))
    policy = load_policy(file, {})
    assert Keys(policy).tenant_of([]) == "development"
    with pytest.raises(KeylessBindError, match="require_key"):
        check_bind(policy, "0.0.0.0")
    closed = msgspec.structs.replace(policy, listen=Listen(require_key=True))
    check_bind(closed, "0.0.0.0")
    for command in (["create", "--tenant", "acme", "--policy", str(file)], ["revoke"]):
        store = SqliteLedger(ledger)
        rows = store.read("SELECT id FROM api_keys")
        assert main(["keys", *command, *[row["id"] for row in rows], "--ledger", str(ledger)], {}) == 0
        store.close()
    store = SqliteLedger(ledger)
    revoked = stored_keys(store.read)
    store.close()
    for keys in (Keys(policy, revoked), Keys(closed)):
        with pytest.raises(Unauthorized):
            keys.tenant_of([])
    gone = msgspec.structs.replace(revoked[0], revoked_at=0.0, tenant="nobody", digest=hashlib.sha256(b"k").digest())
    with pytest.raises(Unauthorized):
        Keys(policy, [gone]).tenant_of([(b"x-api-key", b"k")])
