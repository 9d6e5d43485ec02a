import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BadRequest
from gateway.runs.identity import Identity, chain_handle, identify, mint_id, new_run, public_id, read_id

SECRET = b"s" * 32
UUID = "0f8fad5b-d9cb-469f-a165-70867728950e"


def known(headers: dict[str, str] | None = None, **hints: str) -> Identity | None:
    return identify(headers or {}, [(name.replace("__", "."), value) for name, value in hints.items()], tenant="acme")


def test_headway_headers_name_run_and_chain() -> None:
    headers = {
        "x-headway-run-id": "r1",
        "x-headway-chain-id": "c2",
        "x-headway-parent-chain-id": "c1",
        "x-headway-run-final": "true",
    }
    assert known(headers) == Identity("acme:r1", "acme:r1#c2", "acme:r1#c1", "x-headway-run-id", True)
    assert known({"x-headway-run-id": "r1"}) == Identity("acme:r1", "acme:r1", None, "x-headway-run-id", False)


@pytest.mark.parametrize(
    "header",
    [
        "x-claude-code-session-id",
        "session-id",
        "session_id",
        "thread-id",
        "x-session-id",
        "x-session-affinity",
        "x-opencode-session",
        "x-dynamo-session-id",
        "x-litellm-trace-id",
        "helicone-session-id",
        "x-llm-d-inference-fairness-id",
    ],
)
def test_each_tools_header_names_the_run(header: str) -> None:
    assert known({header: UUID}) == Identity(f"acme:{UUID}", f"acme:{UUID}", None, header, False)


@pytest.mark.parametrize(
    "field",
    [
        "litellm_session_id",
        "metadata.litellm_session_id",
        "metadata.session_id",
        "program_id",
        "session_id",
        "prompt_cache_key",
        "conversation",
    ],
)
def test_each_body_field_names_the_run(field: str) -> None:
    assert identify({}, [(field, "abc")], tenant="t") == Identity("t:abc", "t:abc", None, field, False)


def test_sub_agents_are_chains_of_their_run() -> None:
    claude = {"x-claude-code-session-id": "s", "x-claude-code-agent-id": "a", "x-claude-code-parent-agent-id": "p"}
    assert known(claude) == Identity("acme:s", "acme:s#a", "acme:s#p", "x-claude-code-session-id", False)
    dynamo = {"x-dynamo-session-id": "child", "x-dynamo-parent-session-id": "s", "x-dynamo-session-final": "1"}
    assert known(dynamo) == Identity("acme:s", "acme:s#child", "acme:s", "x-dynamo-session-id", False, closes=True)
    helicone = known({"helicone-session-id": "s", "helicone-session-path": "/plan/search"})
    assert helicone is not None
    assert helicone.chain == "acme:s#plan/search"


def test_a_claude_user_id_holds_the_session() -> None:
    found = known(metadata__user_id=f"user_abc_account__session_{UUID}")
    assert found is not None
    assert found.run == f"acme:{UUID}"
    assert known(metadata__user_id="just-a-user") is None


def test_headers_win_over_the_body_and_ours_over_all() -> None:
    headers = {"session-id": "second", "x-headway-run-id": "first"}
    found = known(headers, session_id="third")
    assert found is not None
    assert found.source == "x-headway-run-id"


def test_tenants_never_share_a_run() -> None:
    a = identify({"session-id": "x"}, [], tenant="a")
    b = identify({"session-id": "x"}, [], tenant="b")
    assert a is not None
    assert b is not None
    assert a.run != b.run
    assert public_id(a.run) == public_id(b.run) == "x"


@pytest.mark.parametrize("bad", ["a b", "x" * 201, "ä", "a\nb", "a#b", "-", '"'])
def test_invalid_id_is_ignored_except_in_headway_headers(bad: str) -> None:
    assert known({"session-id": bad}, session_id=bad) is None
    with pytest.raises(BadRequest, match="x-headway-run-id"):
        known({"x-headway-run-id": bad})
    with pytest.raises(BadRequest, match="x-headway-chain-id"):
        known({"x-headway-run-id": "good", "x-headway-chain-id": bad})


def test_request_without_hints_has_no_identity() -> None:
    assert known({"content-type": "application/json", "session-id": ""}) is None
    assert new_run("acme", "1a") == Identity("acme:run-1a", "acme:run-1a", None, "new", False)


@given(st.text(min_size=1, max_size=300), st.integers(0, 2**40), st.text(max_size=20))
def test_minted_ids_come_back_for_their_tenant_only(chain: str, number: int, tenant: str) -> None:
    minted = mint_id(SECRET, chain, number, tenant=tenant)
    assert len(minted) == 29
    assert read_id(SECRET, minted, tenant=tenant) == chain_handle(chain)
    assert read_id(SECRET, minted, tenant=tenant + "x") is None
    assert read_id(b"other", minted, tenant=tenant) is None


def test_minted_ids_differ_by_number() -> None:
    assert len({mint_id(SECRET, "c", number, tenant="t") for number in range(1000)}) == 1000


@given(st.text(max_size=40) | st.text("call_ABCab01-_=", min_size=20, max_size=30).map(lambda text: "call_" + text))
def test_foreign_id_is_not_a_minted_one(call_id: str) -> None:
    assert read_id(SECRET, call_id, tenant="t") is None


def test_changed_id_is_not_a_minted_one() -> None:
    minted = mint_id(SECRET, "chain", 1, tenant="t")
    for place in range(5, 29):
        other = "A" if minted[place] != "A" else "B"
        assert read_id(SECRET, minted[:place] + other + minted[place + 1 :], tenant="t") is None
