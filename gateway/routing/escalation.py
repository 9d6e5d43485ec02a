"""When a lower tier's doubtful answer begins anew on the best tier: what was fitted, and what follows for one question.

With `mistake_cost` it is a matter of price: an answer begins anew when what that costs is less than what the doubt costs,

    usd(best tier) < mistake_usd * (P(best tier's is good) - P(this one is good))

so that the bar is high where the best tier is cheap and low where it is dear.
"""

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

NEVER_SURE = 1.0 + 1e-6


class EscalationPlan(NamedTuple):
    """The first `tokens` tokens are held back, and the answer begins anew when one of them is less likely than `threshold`.
    `catch` and `alarm` are the shares of worse and of good answers to such a question for which that happens."""

    tokens: int
    threshold: float
    catch: float
    alarm: float

    def chance(self, quality: float) -> float:
        """That a request escalates whose answer would be good with chance `quality`."""
        return quality * self.alarm + (1.0 - quality) * self.catch

    def quality_after(self, quality: float) -> float:
        """Of the answer that the caller gets in the end."""
        return 1.0 - (1.0 - quality) * (1.0 - self.catch)


class Shares(msgspec.Struct, frozen=True, array_like=True):
    """Rows of about one estimate: quantiles, equally spaced, of their chances after the first tokens."""

    quality: float
    good: tuple[float, ...]
    worse: tuple[float, ...]


class Escalation(msgspec.Struct, frozen=True, kw_only=True):
    """When the chance of a good answer is below a bar once the first `tokens` tokens are seen, it begins anew on a better tier:

        logit(chance) = bias + prior * logit(quality) - doubt * log(-log(confidence))

    `bar` is the one with which `kept` of the top tier's accuracy is kept; `catch` is the share of worse answers that it finds,
    `alarm` the share of good ones that it takes for worse, and `share` how many escalate, all on `rows` outcomes; `shares` tell
    the chances of good and worse answers apart by the estimate.
    """

    tokens: int
    bar: float
    bias: float
    prior: float
    doubt: float
    shares: tuple[Shares, ...]
    catch: float
    alarm: float
    kept: float
    share: float
    rows: int

    def at(self, quality: float, *, bar: float | None = None, tokens: int | None = None) -> EscalationPlan:
        """For one question, of which the tier's estimate is `quality`."""
        bar = self.bar if bar is None else bar
        right = min(bisect.bisect_right(self.shares, quality, key=_quality), len(self.shares) - 1)
        around = self.shares[max(0, right - 1) : right + 1]
        told = [shares.quality for shares in around]
        return EscalationPlan(
            tokens=tokens or self.tokens,
            threshold=self._threshold(quality, bar),
            catch=interpolated(quality, told, [_below(bar, shares.worse) for shares in around]),
            alarm=interpolated(quality, told, [_below(bar, shares.good) for shares in around]),
        )

    def _threshold(self, quality: float, bar: float) -> float:
        """The confidence with which the chance is just at the bar; over 1 where no confidence is enough."""
        if bar <= 0.0:
            return 0.0
        room = self.bias + self.prior * log_odds(quality) - log_odds(bar)
        if bar >= 1.0 or (self.doubt == 0.0 and room < 0.0):
            return NEVER_SURE
        if self.doubt == 0.0:
            return 0.0
        most = room / self.doubt
        if most < unsureness(1.0):
            return NEVER_SURE
        return math.exp(-math.exp(min(most, 6.0)))


class Escalating(msgspec.Struct, frozen=True, kw_only=True):
    """What was fitted for a tier, and what the route wants of it: `bar` None leaves the bar to the price of a mistake, and
    where mistakes have none to what was fitted."""

    fitted: Escalation
    tokens: int | None = None
    bar: float | None = None

    def hold(self, quality: float, *, best: float, anew_usd: float, mistake_usd: float) -> EscalationPlan:
        """For one question: `quality` is the tier's estimate, `best` that of the tier on which it would begin anew for
        `anew_usd`."""
        bar = self.bar
        if bar is None and mistake_usd > 0.0:
            bar = max(0.0, best - anew_usd / mistake_usd)
        return self.fitted.at(quality, bar=bar, tokens=self.tokens)


def interpolated(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """Piecewise linear through the points, level outside of them. `xs` must rise."""
    right = bisect.bisect_right(xs, x)
    if right == 0:
        return ys[0]
    if right == len(xs):
        return ys[-1]
    part = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
    return ys[right - 1] + part * (ys[right] - ys[right - 1])


def log_odds(chance: float) -> float:
    """No estimate is surer than one in 200: some hundred outcomes cannot tell."""
    chance = min(max(chance, 0.005), 0.995)
    return math.log(chance / (1.0 - chance))


def unsureness(confidence: float) -> float:
    """log(-log(confidence)): spreads what is close to 1, where most confidences are."""
    return math.log(-math.log(min(max(confidence, 1e-6), 1.0 - 1e-6)))


def _below(bar: float, quantiles: Sequence[float]) -> float:
    """The share of those whose quantiles these are."""
    if not quantiles:
        return 0.0
    ranks = [rank / (len(quantiles) - 1) for rank in range(len(quantiles))]
    last = bisect.bisect_left(quantiles, bar)
    if last == 0:
        return 0.0
    if last == len(quantiles):
        return 1.0
    low, high = quantiles[last - 1], quantiles[last]
    return ranks[last - 1] + (ranks[last] - ranks[last - 1]) * (bar - low) / (high - low)


def _quality(shares: Shares) -> float:
    return shares.quality
