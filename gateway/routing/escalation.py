"""Escalation of a lower tier's doubtful answer to the best tier: the fitted model, and the plan for one request.

With `mistake_cost` it is a matter of price. A request escalates when that costs less than the doubt:

    usd(best tier) < mistake_usd * (P(best tier's is good) - P(this one is good))

The bar is thus high if the best tier is cheap and low if it is dear.
"""

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

NEVER_SURE = 1.0 + 1e-6
"""Threshold above every confidence: the request always escalates."""


class EscalationPlan(NamedTuple):
    """The first `tokens` tokens are held back, and the request escalates if one of them is less likely than `threshold`.
    `catch` and `alarm` are the shares of worse and of good answers to such a request that escalate."""

    tokens: int
    threshold: float
    catch: float
    alarm: float

    def chance(self, quality: float) -> float:
        """Return the chance of escalation if the answer would be good with chance `quality`."""
        return quality * self.alarm + (1.0 - quality) * self.catch

    def quality_after(self, quality: float) -> float:
        """Return the quality of the final answer."""
        return 1.0 - (1.0 - quality) * (1.0 - self.catch)


class Shares(msgspec.Struct, frozen=True, array_like=True):
    """Quantiles of the chances after the first tokens, equally spaced, of rows with about the same estimate."""

    quality: float
    good: tuple[float, ...]
    worse: tuple[float, ...]


class Escalation(msgspec.Struct, frozen=True, kw_only=True):
    """Fitted rule: an answer escalates when its chance to be good, after the first `tokens` tokens, is below a bar:

        logit(chance) = bias + prior * logit(quality) - doubt * log(-log(confidence))

    `bar` keeps the share `kept` of the top tier's accuracy. `catch` is the share of worse answers that escalate, `alarm`
    that of good answers, and `share` that of all, on `rows` outcomes. `shares` are the distributions of good and worse
    answers by estimate.
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
        """Return the plan for a request with estimate `quality`. `bar` and `tokens` override the fitted ones."""
        bar = self.bar if bar is None else bar
        right = min(bisect.bisect_right(self.shares, quality, key=_quality), len(self.shares) - 1)
        around = self.shares[max(0, right - 1) : right + 1]
        qualities = [shares.quality for shares in around]
        return EscalationPlan(
            tokens=tokens or self.tokens,
            threshold=self._threshold(quality, bar),
            catch=interpolated(quality, qualities, [_below(bar, shares.worse) for shares in around]),
            alarm=interpolated(quality, qualities, [_below(bar, shares.good) for shares in around]),
        )

    def _threshold(self, quality: float, bar: float) -> float:
        """Return the confidence at which the chance equals the bar. Above 1 if no confidence suffices."""
        if bar <= 0.0:
            return 0.0
        margin = self.bias + self.prior * log_odds(quality) - log_odds(bar)
        if bar >= 1.0 or (self.doubt == 0.0 and margin < 0.0):
            return NEVER_SURE
        if self.doubt == 0.0:
            return 0.0
        allowed = margin / self.doubt
        if allowed < unsureness(1.0):
            return NEVER_SURE
        return math.exp(-math.exp(min(allowed, 6.0)))


class Escalating(msgspec.Struct, frozen=True, kw_only=True):
    """Fitted rule of a tier with the settings of the route. Without `bar` the price of a mistake sets it; without such a
    price the fitted one holds."""

    fitted: Escalation
    tokens: int | None = None
    bar: float | None = None

    def plan(self, quality: float, *, best: float, restart_usd: float, mistake_usd: float) -> EscalationPlan:
        """Return the plan for one request. `quality` is the tier's estimate, `best` that of the best tier, where a restart
        costs `restart_usd`."""
        bar = self.bar
        if bar is None and mistake_usd > 0.0:
            bar = max(0.0, best - restart_usd / mistake_usd)
        return self.fitted.at(quality, bar=bar, tokens=self.tokens)


def interpolated(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """Return the piecewise linear interpolation, constant beyond the ends. `xs` must rise."""
    right = bisect.bisect_right(xs, x)
    if right == 0:
        return ys[0]
    if right == len(xs):
        return ys[-1]
    part = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
    return ys[right - 1] + part * (ys[right] - ys[right - 1])


def log_odds(chance: float) -> float:
    """Return log(chance / (1 - chance)), clipped at one in 200: some hundred outcomes support no surer estimate."""
    chance = min(max(chance, 0.005), 0.995)
    return math.log(chance / (1.0 - chance))


def unsureness(confidence: float) -> float:
    """Return log(-log(confidence)), which spreads values close to 1, where most confidences are."""
    return math.log(-math.log(min(max(confidence, 1e-6), 1.0 - 1e-6)))


def _below(bar: float, quantiles: Sequence[float]) -> float:
    """Return the share of values below the bar, from their quantiles."""
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
