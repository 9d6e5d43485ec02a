"""To which models requests of a kind went lately, so that under overload not everyone has to be read to know that it would be
refused. Pure: time is an argument."""

from collections.abc import Hashable, Set

MAX_KINDS = 1024
RARE = 0.01
"""A model that got less than this share is not one that the next request of the kind is expected to go to."""
ENOUGH = 100.0
_FORGET = 0.998
"""Weight that a choice keeps when the next one comes: about the last 500 count."""
REFUSED_S = 0.25
"""A refusal says so long that the next of its kind may be refused too."""
READ_EVERY = 8
"""Of those that might be refused unread, one in so many is read all the same: that is how a change is seen."""


class _FlowStats:
    def __init__(self) -> None:
        self.chosen: dict[str, float] = {}
        self.refused_at = float("-inf")
        self.unread = 0


class Usual:
    """By kind of request: what was chosen, and when somebody was refused who had been read."""

    def __init__(self) -> None:
        self._kinds: dict[Hashable, _FlowStats] = {}
        self._refused_at = float("-inf")

    def is_shedding(self, now: float) -> bool:
        """Whether anybody was refused lately."""
        return now - self._refused_at <= REFUSED_S

    def record_choice(self, kind: Hashable, model: str) -> None:
        one = self._kinds.get(kind)
        if one is None:
            if len(self._kinds) >= MAX_KINDS:
                del self._kinds[next(iter(self._kinds))]
            one = self._kinds[kind] = _FlowStats()
        for name in one.chosen:
            one.chosen[name] *= _FORGET
        one.chosen[model] = one.chosen.get(model, 0.0) + 1.0

    def record_refusal(self, kind: Hashable, now: float) -> None:
        """One whose choice was told before."""
        if (one := self._kinds.get(kind)) is not None:
            one.refused_at = self._refused_at = now

    def models(self, kind: Hashable, now: float) -> Set[str]:
        """To which the next of a kind that is being refused is expected to go; none where it has to be read to know."""
        one = self._kinds.get(kind)
        if one is None or now - one.refused_at > REFUSED_S:
            return frozenset()
        total = sum(one.chosen.values())
        if total < ENOUGH:
            return frozenset()
        return {name for name, weight in one.chosen.items() if weight >= RARE * total}

    def wants_probe(self, kind: Hashable) -> bool:
        """Whether this one, which could be refused unread, is the one in READ_EVERY that is not."""
        one = self._kinds[kind]
        one.unread += 1
        return one.unread % READ_EVERY == 0
