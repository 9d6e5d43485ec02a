"""The engine on a fake model: mixed, shared, preempted or aborted, each sequence gives the text that it gives alone."""

import random
from array import array

import pytest

from backends.engine.engine import MAX_HELD_LOGPROBS
from backends.wire import Sampling, Submit, TokenLogprob, page_hashes
from tests.backends.engine.rig import Rig, reference_without_end, said
from tests.backends.fakes import LetterDecoder, letter, limits, reference, tokens_of


@pytest.mark.parametrize("seed", range(40))
def test_random_batch_gives_the_text_of_each_request_alone(seed: int) -> None:
    rng = random.Random(seed)
    of = limits(
        num_pages=rng.choice((14, 24, 60)),
        page_size=rng.choice((1, 3, 4)),
        max_sequences=rng.choice((1, 3, 5)),
        prefill_tokens=rng.choice((1, 7, 64)),
        max_context=40,
    )
    rig = Rig(of, seed, host_pages=rng.choice((0, 5, 60)), guesses=rng.choice(("", "oracle", "draft")))
    if rng.random() < 0.5:
        rig.runner.during = lambda: rig.engine.record_arrival(rng.randrange(-1, 3))
    stems = [[rng.randrange(1, 97) for _ in range(12)] for _ in range(3)]
    asked: dict[int, tuple[list[int], int]] = {}
    aborted: set[int] = set()
    for request in range(40):
        prompt = (rng.choice(stems)[: rng.randrange(1, 12)] + [rng.randrange(1, 97) for _ in range(rng.randrange(4))])[
            : of.longest - 1
        ]
        asked[request] = prompt, rng.randrange(1, 12)
        rig.submit(
            request,
            prompt,
            priority=rng.randrange(3),
            salt=rng.choice("ab"),
            chain=rng.choice("xyz"),
            max_tokens=asked[request][1],
        )
        for _ in range(rng.randrange(4)):
            if rig.engine.has_work:
                rig.step()
        if rng.random() < 0.15:
            victim = rng.randrange(request + 1)
            rig.engine.abort("me", victim)
            aborted.add(victim)
        if rng.random() < 0.1:
            rig.engine.set_retention(rng.choice("xyz"), rng.choice((0.0, 0.5, 2.0)))
        rig.engine.check()
    rig.run()
    assert set(rig.finished) == set(asked)
    for request, (prompt, count) in asked.items():
        expected = said(prompt, min(count, of.longest - len(prompt)))
        finished = rig.finished[request]
        if finished.reason == "refused":
            assert finished.error_code == "too_many"
        elif finished.reason == "abort":
            assert request in aborted and expected.startswith(rig.text.get(request, ""))
        else:
            assert rig.text.get(request, "") == expected
            assert rig.counted[request] == finished.num_output_tokens


def test_accepted_drafts_save_steps_and_are_charged() -> None:
    rig, plain = Rig(limits(), guesses="oracle"), Rig(limits())
    for one in (rig, plain):
        one.submit(1, [5] * 9, max_tokens=40, ignore_eos=True)
        one.run()
    assert rig.engine.speculator is not None
    tally = rig.engine.speculator.tallies["lookup"]
    assert rig.text == plain.text and tally.drafted > tally.accepted > 10
    assert rig.finished[1].num_steps < plain.finished[1].num_steps - 10
    assert rig.engine.busy_meter.attributed_ns == rig.engine.busy_meter.busy_ns


def test_draft_model_catches_up_after_a_cache_hit() -> None:
    rig, plain = Rig(limits(prefill_tokens=8), guesses="draft"), Rig(limits(prefill_tokens=8))
    for one in (rig, plain):
        one.submit(1, [5] * 30, max_tokens=40, ignore_eos=True)
        one.run()
        one.submit(2, [*[5] * 30, *reference([5] * 30, 20), 7], max_tokens=40, ignore_eos=True)
        one.submit(3, [6] * 20, max_tokens=40, ignore_eos=True)
        one.run()
    assert rig.engine.speculator is not None
    tally = rig.engine.speculator.tallies["draft"]
    assert rig.text == plain.text and tally.drafted == tally.accepted > 60
    assert rig.finished[2].num_cached_tokens > 40 and rig.finished[2].num_steps < plain.finished[2].num_steps - 20
    assert rig.engine.busy_meter.attributed_ns == rig.engine.busy_meter.busy_ns


def test_a_second_turn_reuses_the_pages_of_the_first() -> None:
    rig = Rig(limits(page_size=4))
    first = [5] * 10
    rig.submit(1, first, max_tokens=7, ignore_eos=True)
    rig.run()
    history = first + reference(first, 7)
    rig.submit(2, [*history, 9])
    rig.run()
    assert rig.finished[2].num_cached_tokens == 16 == len(history) - 1
    assert rig.text[2] == said([*history, 9], 8)


def test_prompts_with_different_salts_never_share_pages() -> None:
    rig = Rig(limits())
    for request, salt in enumerate(("a", "b", "a")):
        rig.submit(request, [7] * 20, salt=salt)
        rig.run()
    assert [rig.finished[request].num_cached_tokens for request in range(3)] == [0, 0, 16]


def test_resident_page_hashes_equal_the_gateways() -> None:
    rig = Rig(limits(page_size=4))
    prompt = list(range(1, 18))
    rig.submit(1, prompt, max_tokens=1, salt="s")
    rig.run()
    stored, removed = rig.engine.index.take_changes()
    assert stored == page_hashes(array("I", prompt).tobytes(), page_size=4, fingerprint="fake", cache_salt="s")
    assert removed == []


def test_an_abort_frees_pages_at_once() -> None:
    rig = Rig(limits())
    rig.submit(1, [3] * 30, max_tokens=50, ignore_eos=True)
    rig.step()
    rig.step()
    assert rig.engine.pool.num_used
    rig.engine.abort("me", 1)
    rig.engine.check()
    assert rig.engine.pool.num_used == 0 and not rig.engine.has_work
    rig.collect()
    assert rig.finished[1].reason == "abort" and rig.finished[1].device_s > 0


def test_abort_of_an_unknown_request_does_nothing() -> None:
    rig = Rig(limits())
    rig.engine.abort("me", 99)
    rig.collect()
    assert not rig.finished


def test_a_stop_string_ends_the_text_before_it() -> None:
    rig = Rig(limits())
    whole = said([6, 6], 8)
    rig.submit(1, [6, 6], stop=("never", whole[3:5]), ignore_eos=True)
    rig.run()
    assert rig.text[1] == whole[:3]
    assert (rig.finished[1].reason, rig.finished[1].stop_text, rig.finished[1].num_output_tokens) == ("stop", whole[3:5], 5)
    assert rig.counted[1] == 5


def test_text_held_for_a_stop_string_is_sent_at_the_end() -> None:
    rig = Rig(limits())
    whole = said([6, 6], 8)
    rig.submit(1, [6, 6], stop=(whole[-2:] + "x",), ignore_eos=True)
    rig.run()
    assert rig.text[1] == whole and rig.finished[1].reason == "length"


def test_charges_sum_to_the_time_of_the_steps() -> None:
    rig = Rig(limits())
    start_ns = rig.clock.now_ns
    for request in range(4):
        rig.submit(request, [request + 1] * (5 * request + 1), max_tokens=3 + request)
        rig.step()
    rig.run()
    busy_meter = rig.engine.busy_meter
    assert busy_meter.attributed_ns == busy_meter.busy_ns
    assert sum(round(f.device_s * 1e9) for f in rig.finished.values()) == busy_meter.busy_ns
    assert all(f.num_steps and 1 <= f.mean_batch <= 4 and f.device_s >= f.prefill_device_s > 0 for f in rig.finished.values())
    assert busy_meter.busy_ns + busy_meter.idle_ns <= rig.clock.now_ns - start_ns + 1_237


def test_logprobs_come_with_their_text() -> None:
    rig = Rig(limits())
    message = Submit(
        request=1, prompt=array("I", [5, 5]).tobytes(), sampling=Sampling(max_tokens=3, top_logprobs=1, ignore_eos=True)
    )
    rig.engine.submit("me", message)
    logprobs: list[TokenLogprob] = []
    while rig.engine.has_work:
        rig.engine.step()
        for piece in rig.engine.take_output().pieces.get("me", []):
            assert len(piece.logprobs) == piece.num_tokens
            logprobs += piece.logprobs
    assert [tokens_of(one.text)[0] for one in logprobs] == reference_without_end([5, 5], 3)
    assert logprobs[0].top == ((letter(1), -0.5),)


class Silent(LetterDecoder):
    """Every token is a special one."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "" if skip_special_tokens else super().decode(ids)


def test_logprobs_of_tokens_without_text_are_split_over_frames() -> None:
    rig = Rig(limits())
    rig.engine._decoder = Silent()
    count = MAX_HELD_LOGPROBS * 3 // 2
    rig.submit(1, [5, 5], max_tokens=count, top_logprobs=1, ignore_eos=True)
    frames: list[int] = []
    while rig.engine.has_work:
        rig.engine.step()
        frames += [len(piece.logprobs) for piece in rig.engine.take_output().pieces.get("me", [])]
    assert frames == [MAX_HELD_LOGPROBS, count - MAX_HELD_LOGPROBS]


def test_shared_pages_are_cached_across_salts_and_later_pages_are_not() -> None:
    rig = Rig(limits())
    prompt = array("I", range(3, 43)).tobytes()
    for number, (salt, shared) in enumerate([("one", 18), ("two", 18), ("three", 0), ("two", 18)]):
        sampling = Sampling(max_tokens=2)
        rig.engine.submit("me", Submit(request=number, prompt=prompt, sampling=sampling, cache_salt=salt, shared_tokens=shared))
        rig.collect()
        rig.run()
    cached = [rig.finished[number].num_cached_tokens for number in range(4)]
    assert cached == [0, 16, 0, 36]
