"""Where requests of a kind go, as far as those that were read say."""

from gateway.scheduling.usual import ENOUGH, MAX_KINDS, READ_EVERY, REFUSED_S, Usual

KIND = ("route", "auto")


def seen(pico: int, nano: int) -> Usual:
    usual = Usual()
    for _ in range(nano):
        usual.record_choice(KIND, "nano")
    for _ in range(pico):
        usual.record_choice(KIND, "pico")
    return usual


def test_nothing_is_usual_before_somebody_was_refused_or_long_after() -> None:
    usual = seen(300, 0)
    assert not usual.models(KIND, 10.0) and not usual.is_shedding(10.0)
    usual.record_refusal(KIND, 10.0)
    assert usual.models(KIND, 10.0 + REFUSED_S) == {"pico"} and usual.is_shedding(10.0 + REFUSED_S)
    assert not usual.models(KIND, 10.1 + REFUSED_S) and not usual.is_shedding(10.1 + REFUSED_S)
    assert not usual.models(("other", "auto"), 10.0)
    usual.record_refusal(("never seen", "auto"), 10.0)


def test_few_choices_say_nothing_and_rare_ones_do_not_count() -> None:
    for pico, nano, models in ((int(ENOUGH) - 1, 0, set()), (300, 2, {"pico"}), (300, 30, {"pico", "nano"})):
        usual = seen(pico, nano)
        usual.record_refusal(KIND, 0.0)
        assert usual.models(KIND, 0.0) == models, (pico, nano)


def test_what_changes_is_seen() -> None:
    usual = seen(1000, 0)
    for _ in range(20):
        usual.record_choice(KIND, "nano")
    usual.record_refusal(KIND, 0.0)
    assert usual.models(KIND, 0.0) == {"pico", "nano"}
    for _ in range(5000):
        usual.record_choice(KIND, "nano")
    assert usual.models(KIND, 0.0) == {"nano"}


def test_one_in_so_many_is_read_all_the_same() -> None:
    usual = seen(300, 0)
    assert sum(usual.wants_probe(KIND) for _ in range(5 * READ_EVERY)) == 5


def test_kinds_are_bounded() -> None:
    usual = Usual()
    for number in range(3 * MAX_KINDS):
        usual.record_choice((f"route {number}", "auto"), "pico")
    assert len(usual._kinds) <= MAX_KINDS
