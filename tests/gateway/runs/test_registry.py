import random

import pytest

from gateway.request import Message, ToolCall
from gateway.runs.identity import Identity, mint_id
from gateway.runs.registry import Chain, Run, RunRegistry, in_tool_loop

SECRET = b"k" * 16


def user(text: str) -> Message:
    return Message(role="user", content=text)


def says(text: str) -> Message:
    return Message(role="assistant", content=text)


def inferred(runs: RunRegistry, *messages: Message, tenant: str = "t", random_id: str = "new") -> Identity:
    return runs.infer(messages, tenant=tenant, secret=SECRET, random_id=random_id)


def began(runs: RunRegistry, name: str, *messages: Message, answer: str = "yes", tenant: str = "t", now: float = 0.0) -> Chain:
    """A new run of one answered turn."""
    _, chain = runs.touch(Identity(f"{tenant}:{name}", f"{tenant}:{name}", None, "new", False), tenant=tenant, now=now)
    runs.dispatched(chain, model="m", worker="w")
    runs.answered(chain, messages, says(answer), tenant=tenant)
    runs.check()
    return chain


def test_history_that_ends_in_a_recorded_answer_continues_its_chain() -> None:
    runs = RunRegistry(10, 900)
    began(runs, "a", user("hi"))
    found = inferred(runs, user("hi"), says(" yes "), user("and then?"))
    assert (found.run, found.source) == ("t:a", "history")
    assert inferred(runs, user("hi"), says("no"), user("and then?")).source == "new"
    assert inferred(runs, user("hi")).run == "t:run-new"
    assert inferred(runs, user("hi"), says("yes"), user("x"), tenant="other").source == "new"


def test_two_runs_that_look_alike_are_not_merged() -> None:
    runs = RunRegistry(10, 900)
    began(runs, "a", user("hi"))
    began(runs, "b", user("hi"))
    assert inferred(runs, user("hi"), says("yes"), user("go on")).source == "new"


def test_history_of_two_equal_chains_continues_the_one_without_a_later_turn() -> None:
    runs = RunRegistry(10, 900)
    a = began(runs, "a", user("hi"))
    runs.answered(a, (user("hi"), says("yes"), user("go on")), says("gone"), tenant="t")
    began(runs, "b", user("hi"))
    assert inferred(runs, user("hi"), says("yes"), user("go on")).run == "t:b"


def test_a_retry_of_an_older_turn_stays_in_its_run() -> None:
    runs = RunRegistry(10, 900)
    a = began(runs, "a", user("hi"))
    runs.answered(a, (user("hi"), says("yes"), user("go on")), says("gone"), tenant="t")
    assert inferred(runs, user("hi"), says("yes"), user("do something else")).run == "t:a"


def test_minted_call_ids_identify_tool_loops() -> None:
    runs = RunRegistry(10, 900)
    for name in ("a", "b"):
        began(runs, name, user("hi"))
    call_id = mint_id(SECRET, "t:b", 0, tenant="t")
    call = Message(role="assistant", tool_calls=(ToolCall(id=call_id, name="f", arguments="{}"),))
    result = Message(role="tool", content="3", tool_call_id=call_id)
    found = inferred(runs, user("hi"), call, result)
    assert (found.run, found.source) == ("t:b", "call_id")
    assert inferred(runs, user("hi"), call, result, tenant="u").source == "new"


def test_tool_loops_end_with_the_users_turn() -> None:
    assert in_tool_loop([user("a"), Message(role="tool", content="1", tool_call_id="x")])
    assert not in_tool_loop([Message(role="tool", content="1", tool_call_id="x"), user("b")])
    assert not in_tool_loop([])


def test_sums_and_locks_are_kept() -> None:
    runs = RunRegistry(10, 900)
    chain = began(runs, "a", user("hi"))
    assert (chain.locked_model, chain.warm_worker, chain.turns) == ("m", "w", 1)
    for _ in range(2):
        runs.charged(
            "t:a",
            device_s=1.0,
            usd=0.5,
            saved_usd=0.1,
            all_large_usd=2.0,
            prompt_tokens=100,
            cached_tokens=40,
            output_tokens=10,
        )
    run = runs.get("t:a")
    assert run is not None
    assert (run.usd, run.device_s, run.turns, run.attained, run.public_id) == (1.0, 2.0, 1, 140, "a")
    runs.worker_lost("w")
    assert chain.warm_worker is None


def test_remaining_turns_are_learned() -> None:
    runs = RunRegistry(1000, 900)
    first = began(runs, "first", user("q"))
    assert runs.expected_remaining_turns(first) == 0
    for number in range(50):
        chain = began(runs, f"run-{number}", user(str(number)))
        for _ in range(3):
            runs.dispatched(chain, model="m", worker="w")
    _, fresh = runs.touch(Identity("t:z", "t:z", None, "new", False), tenant="t", now=0.0)
    assert runs.expected_remaining_turns(fresh) == pytest.approx(3.0, abs=0.1)


def test_longest_idle_run_is_evicted_and_idle_runs_expire() -> None:
    runs = RunRegistry(2, 900)
    for now, name in enumerate("abc"):
        began(runs, name, user(name), now=float(now))
    assert [run.public_id for run in runs.all()] == ["b", "c"]
    assert inferred(runs, user("a"), says("yes"), user("x")).source == "new"
    assert [run.public_id for run in runs.expire(901.0)] == ["a", "b"]
    assert [run.public_id for run in runs.expire(902.0)] == ["c"]
    assert len(runs) == 0
    runs.check()


def test_a_random_walk_stays_bounded_and_whole() -> None:
    rng, runs = random.Random(11), RunRegistry(20, 50)
    opened: list[Run] = []
    for now in range(3000):
        name = f"t:{rng.randrange(60)}"
        chain_name = name if rng.random() < 0.7 else f"{name}#{rng.randrange(400)}"
        open_, chain = runs.touch(Identity(name, chain_name, None, "session-id", False), tenant="t", now=float(now))
        history = [user(str(rng.randrange(5))) for _ in range(rng.randrange(1, 4))]
        runs.dispatched(chain, model="m", worker="w")
        runs.answered(chain, history, says(str(rng.randrange(3))), tenant="t")
        if rng.random() < 0.3:
            opened.append(open_)
            runs.opened(open_)
        if opened and rng.random() < 0.4:
            runs.closed(opened.pop(rng.randrange(len(opened))), final=rng.random() < 0.2, now=float(now))
        if rng.random() < 0.05:
            runs.expire(float(now))
        if now % 20 == 0:
            runs.check()


def touched(runs: RunRegistry, name: str, chain: str = "", *, now: float = 0.0) -> tuple[Run, Chain]:
    identity = Identity(f"t:{name}", f"t:{name}{chain}", None, "x-headway-run-id", False)
    return runs.touch(identity, tenant="t", now=now)


def test_a_run_goes_on_while_it_has_a_request_open() -> None:
    runs = RunRegistry(2, 900)
    run, _ = touched(runs, "a")
    runs.opened(run)
    assert runs.expire(5000.0) == []
    for name in "bc":
        touched(runs, name, now=5000.0)
    assert [one.public_id for one in runs.all()] == ["a", "c"]
    assert runs.closed(run, final=False, now=6000.0) is None
    assert [one.public_id for one in runs.expire(6001.0)] == ["b", "c"]
    assert [one.public_id for one in runs.expire(6900.0)] == ["a"]


def test_a_final_run_ends_with_the_last_of_its_requests_and_keeps_its_chains() -> None:
    runs = RunRegistry(2, 900)
    run, _ = touched(runs, "a")
    touched(runs, "a", "#sub")
    for _ in range(2):
        runs.opened(run)
    assert runs.closed(run, final=True, now=1.0) is None
    assert runs.closed(run, final=False, now=2.0) is run
    assert list(run.chains) == ["t:a", "t:a#sub"]
    assert len(runs) == 0
    runs.check()


def test_most_recent_chain_is_not_evicted() -> None:
    runs = RunRegistry(2, 900)
    _, main = touched(runs, "a")
    main.locked_model = "m"
    for number in range(600):
        touched(runs, "a", f"#{number}")
        assert touched(runs, "a")[1] is main


def test_answer_to_an_evicted_chain_is_not_recorded() -> None:
    runs = RunRegistry(1, 900)
    _, gone = touched(runs, "a")
    touched(runs, "b")
    touched(runs, "a")
    runs.answered(gone, [user("hi")], says("yes"), tenant="t")
    runs.check()


def test_retried_turn_counts_once() -> None:
    runs = RunRegistry(1, 900)
    run, chain = touched(runs, "a")
    runs.dispatched(chain, model="m", worker="w")
    runs.dispatched(chain, model="m", worker="v", again=True)
    assert (run.turns, chain.turns, chain.warm_worker) == (1, 1, "v")


def test_edited_answer_continues_its_chain_and_a_similar_program_does_not() -> None:
    runs = RunRegistry(max_runs=10, idle_s=900.0)
    system = Message(role="system", content="You are an agent. " * 50)
    first = (system, Message(role="user", content="Mend the first test."))
    identity = runs.infer(first, tenant="t", secret=b"s", random_id="one")
    _, chain = runs.touch(identity, tenant="t", now=0.0)
    runs.record_prompt(chain, first, tenant="t")
    shortened = (*first, Message(role="assistant", content="not as we sent it"), Message(role="user", content="And now?"))
    found = runs.infer(shortened, tenant="t", secret=b"s", random_id="two")
    assert (found.chain, found.source) == (chain.name, "text")
    other = (system, Message(role="user", content="Another task."), *shortened[2:])
    assert runs.infer(other, tenant="t", secret=b"s", random_id="three").source == "new"
    assert runs.infer(first, tenant="t", secret=b"s", random_id="four").source == "new"
    runs.check()


def test_rewritten_history_is_matched_by_its_opening_within_its_trace() -> None:
    runs = RunRegistry(10, 900.0)
    opening = (Message(role="system", content="be brief"), user("find the fault"))
    first = began(runs, "a", *opening)
    runs.record_prompt(first, opening, tenant="t", trace="one")
    rewritten = (*opening, says("(a summary of what I said)"), user("go on"))

    def found(trace: str, *messages: Message, tenant: str = "t") -> str:
        return runs.infer(messages, tenant=tenant, secret=SECRET, random_id="new", trace=trace).source

    assert found("one", *rewritten) == "traceparent"
    assert found("two", *rewritten) == found("", *rewritten) == "new"
    assert found("one", *rewritten, tenant="u") == "new"
    assert found("one", opening[0], user("something else"), *rewritten[2:]) == "new"
    assert found("one", *opening) == "new"  # nothing says that it goes on: another try may begin alike
    second = began(runs, "b", *opening, answer="no")
    runs.record_prompt(second, opening, tenant="t", trace="one")
    assert found("one", *rewritten) == "new"  # either could be meant
    runs.check()


def test_traces_are_bounded_and_die_with_their_chain() -> None:
    runs = RunRegistry(4, 900.0)
    for number in range(20):
        opening = (user(f"question {number}"),)
        runs.record_prompt(began(runs, str(number), *opening, now=float(number)), opening, tenant="t", trace="one")
        runs.check()
    runs.expire(10_000.0)
    gone = (user("question 19"), says("(other)"), user("more"))
    assert runs.infer(gone, tenant="t", secret=SECRET, random_id="new", trace="one").source == "new"
