"""Labels that come back: put on an answer, kept in the ledger, and read again to train on."""

from pathlib import Path
from typing import Any

from gateway.ledger.ledger import SqliteLedger
from gateway.ledger.outcomes import outcomes_of
from gateway.ledger.rows import OutcomeRow
from tests.served import Served, ask, serve

KEYS = "tenants: {red: {keys: [r]}, blue: {keys: [b]}}"
MESSAGES = [{"role": "user", "content": "hello"}]


async def post(one: Served, body: dict[str, Any], key: str = "none") -> tuple[int, dict[str, Any]]:
    headers = {"authorization": f"Bearer {key}"}
    async with one.http.post(f"{one.url}/v1/headway/outcomes", json=body, headers=headers) as answer:
        return answer.status, await answer.json()


async def answered(one: Served, key: str = "none", **more: Any) -> tuple[str, str]:
    """(decision, request)"""
    headers = {"authorization": f"Bearer {key}"}
    async with one.http.post(f"{one.url}/v1/chat/completions", json=ask(**more), headers=headers) as answer:
        return answer.headers["x-headway-decision-id"], (await answer.json())["id"]


async def test_answers_of_both_tiers_that_were_labelled_are_one_outcome_to_train_on(tmp_path: Path) -> None:
    async with serve(tmp_path) as one:
        small, _ = await answered(one, model="small")
        _, large = await answered(one, model="large")
        status, said = await post(one, {"decision": small, "right": False, "messages": MESSAGES})
        assert (status, said["tier"], said["score"], said["trainable"]) == (200, "small", 0.0, True)
        status, said = await post(one, {"request": large, "score": 0.75, "messages": MESSAGES})
        assert (status, said["tier"], said["score"]) == (200, "large", 0.75)
        rows = [row for row in one.ledger.rows if isinstance(row, OutcomeRow)]
    ledger = SqliteLedger(tmp_path / "ledger.db")
    for row in rows:
        ledger.record(row)
    ledger.close()
    (outcome,) = outcomes_of(tmp_path / "ledger.db")
    assert outcome.outcomes == {"small": 0.0, "large": 0.75}
    assert outcome.question == "hello"


async def test_without_its_messages_a_label_is_kept_and_not_trained_on(tmp_path: Path) -> None:
    async with serve(tmp_path) as one:
        decision, _ = await answered(one)
        status, said = await post(one, {"decision": decision, "right": True})
        assert (status, said["trainable"]) == (200, False)


async def test_a_tenant_labels_only_its_own_answers(tmp_path: Path) -> None:
    async with serve(tmp_path, more=KEYS) as one:
        decision, _ = await answered(one, key="r")
        status, said = await post(one, {"decision": decision, "right": True}, key="b")
        assert (status, said["error"]["code"]) == (404, "not_found")
        assert (await post(one, {"decision": decision, "right": True}, key="r"))[0] == 200
        assert (await post(one, {"decision": decision, "right": True}, key="nobody"))[0] == 401


async def test_malformed_outcome_is_a_400(tmp_path: Path) -> None:
    async with serve(tmp_path) as one:
        decision, _ = await answered(one)
        _, several = await answered(one, n=2)
        for wrong in (
            {"right": True},
            {"decision": decision},
            {"decision": decision, "right": True, "score": 1.0},
            {"decision": decision, "rihgt": True},
            {"decision": decision, "right": True, "messages": [{"role": "nobody", "content": "x"}]},
            {"request": several, "right": True},
        ):
            status, said = await post(one, wrong)
            assert (status, said["error"]["code"]) == (400, "invalid_request"), wrong


QUESTION = [{"role": "user", "content": "another question"}]


async def test_label_with_messages_that_were_not_asked_is_refused(tmp_path: Path) -> None:
    async with serve(tmp_path) as one:
        decision, _ = await answered(one)
        status, said = await post(one, {"decision": decision, "right": False, "messages": QUESTION})
        assert (status, said["error"]["param"]) == (400, "messages")
        longer = [*MESSAGES, {"role": "user", "content": ""}]
        assert (await post(one, {"decision": decision, "right": False, "messages": longer}))[0] == 400
        assert not [row for row in one.ledger.rows if isinstance(row, OutcomeRow)]


async def test_label_with_tools_that_were_not_offered_is_refused(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "weather"}}
    async with serve(tmp_path) as one:
        decision, _ = await answered(one, tools=[tool])
        label = {"decision": decision, "right": True, "messages": MESSAGES}
        other = {"type": "function", "function": {"name": "shell"}}
        assert (await post(one, {**label, "tools": [other]}))[0] == 400
        assert (await post(one, {**label, "tools": [tool]}))[0] == 200


async def test_score_is_from_zero_to_one(tmp_path: Path) -> None:
    async with serve(tmp_path) as one:
        decision, _ = await answered(one)
        for score in (-1e308, -0.001, 1.001, 1e308):
            status, said = await post(one, {"decision": decision, "score": score})
            assert (status, said["error"]["param"]) == (400, "score")


async def test_later_label_of_an_answer_replaces_the_first(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.db")
    async with serve(tmp_path, ledger=ledger) as one:
        decision, request = await answered(one)
        for number in range(50):
            label = {"right": bool(number % 2), "messages": MESSAGES}
            assert (await post(one, {"decision": decision, **label}))[0] == 200
        assert (await post(one, {"request": request, "score": 0.25, "messages": MESSAGES}))[0] == 200
    (outcome,) = outcomes_of(tmp_path / "ledger.db")
    assert [*outcome.outcomes.values()] == [0.25]
