"""Chance of each tier to answer as well as the top one: a calibrated logistic model on hashed features, loaded from an
artefact.

The artefact is JSON: weights in eight bits, isotonic points, escalation rules, and how, on what and how well it was
trained.
"""

import base64
import math
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from gateway.request import Message, Tool
from gateway.routing import features as _features
from gateway.routing.escalation import Escalation, interpolated

ARTEFACT_VERSION = 3


class ArtefactError(ValueError):
    """The file is no quality artefact, or one that this version cannot read. The message states which, and the remedy."""


class Reliability(msgspec.Struct, frozen=True, array_like=True):
    """One bin of the reliability curve on held-out rows: mean estimate, share of good answers, rows."""

    estimated: float
    observed: float
    rows: int


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """Metrics of calibrated out-of-fold estimates. `base_rate` is the share of rows where the tier was as good as the top
    one."""

    rows: int
    base_rate: float
    log_loss: float
    log_loss_of_base_rate: float
    auc: float
    ece: float


class Hashed(msgspec.Struct, frozen=True, kw_only=True):
    """Weights of hashed indices, one each: signed bytes in base64, times `scale`."""

    scale: float
    weights: str


class Scalar(msgspec.Struct, frozen=True, array_like=True):
    """Weight of one scalar, and its range in training. Values outside are clipped."""

    weight: float
    low: float
    high: float


class TierModel(msgspec.Struct, frozen=True, kw_only=True):
    """`points` are (logit, probability), both rising. `penalties` are of structure, n-grams and scalars."""

    bias: float
    structure: Hashed
    ngrams: Hashed
    scalars: tuple[Scalar, ...]
    penalties: tuple[float, float, float] = (0.0, 0.0, 0.0)
    points: tuple[tuple[float, float], ...]
    reliability: tuple[Reliability, ...] = ()
    metrics: Metrics | None = None
    escalation: Escalation | None = None


class FeatureSettings(msgspec.Struct, frozen=True, kw_only=True):
    version: int = _features.VERSION
    bits: Annotated[int, msgspec.Meta(ge=8, le=20)] = _features.DEFAULT_BITS


class Artefact(msgspec.Struct, frozen=True, kw_only=True):
    """`top` is the tier with which the others are compared. `data` is a digest of the outcomes used for training."""

    version: int = ARTEFACT_VERSION
    top: str
    features: FeatureSettings = FeatureSettings()
    tiers: dict[str, TierModel]
    rows: int
    data: str
    command: str


class _Tier:
    def __init__(self, model: TierModel, size: int) -> None:
        if not model.points:
            raise ValueError("no calibration points")
        if len(model.scalars) != _features.NUM_SCALARS:
            raise ValueError(f"{len(model.scalars)} weights of plain numbers instead of {_features.NUM_SCALARS}")
        self.bias = model.bias
        self.structure, self.ngrams = _unpacked(model.structure, size), _unpacked(model.ngrams, size)
        self.scalars = [(scalar.weight, scalar.low, scalar.high) for scalar in model.scalars]
        self.logits = [logit for logit, _ in model.points]
        self.chances = [chance for _, chance in model.points]

    def logit(self, features: _features.Features) -> float:
        logit = self.bias + sum(map(self.structure.__getitem__, features.structure))
        if features.ngrams:
            logit += sum(map(self.ngrams.__getitem__, features.ngrams)) / math.sqrt(len(features.ngrams))
        for (weight, low, high), value in zip(self.scalars, features.scalars, strict=True):
            logit += weight * (low if value < low else high if value > high else value)
        return logit

    def estimate(self, features: _features.Features) -> float:
        return interpolated(self.logit(features), self.logits, self.chances)


def _unpacked(hashed: Hashed, size: int) -> list[float]:
    raw = array("b", base64.b64decode(hashed.weights, validate=True))
    if len(raw) != size:
        raise ValueError(f"{len(raw)} weights instead of {size}")
    return [weight * hashed.scale for weight in raw]


class QualityModel:
    """Immutable after loading; safe to share."""

    def __init__(self, artefact: Artefact) -> None:
        """Raises ArtefactError."""
        if artefact.version != ARTEFACT_VERSION or artefact.features.version != _features.VERSION:
            raise ArtefactError(
                f"made for artefact version {artefact.version} and feature version {artefact.features.version}, this is "
                f"{ARTEFACT_VERSION} and {_features.VERSION}: train it again with `headway router train`"
            )
        self.artefact = artefact
        self._bits = artefact.features.bits
        try:
            self._tiers = {name: _Tier(model, 1 << self._bits) for name, model in artefact.tiers.items()}
        except ValueError as error:
            raise ArtefactError(f"its weights are damaged: {error}") from error

    @classmethod
    def load(cls, path: Path) -> "QualityModel":
        """Return the model in a file. Raises ArtefactError, which names the file."""
        try:
            return cls(msgspec.json.decode(path.read_bytes(), type=Artefact))
        except (OSError, msgspec.DecodeError, ArtefactError) as error:
            raise ArtefactError(f"{path}: {error}") from error

    def features(self, messages: Sequence[Message], tools: Sequence[Tool]) -> _features.Features:
        return _features.features(messages, tools, bits=self._bits)

    def estimate(self, features: _features.Features) -> dict[str, float]:
        """Return the chance by tier that its answer is as good as the top tier's, from `features`."""
        chances = {name: tier.estimate(features) for name, tier in self._tiers.items()}
        chances[self.artefact.top] = 1.0
        return chances

    def logits(self, features: _features.Features) -> dict[str, float]:
        """Return the logits by tier, without the top one, before calibration: their order is finer than that of `estimate`."""
        return {name: tier.logit(features) for name, tier in self._tiers.items()}

    def escalations(self) -> dict[str, Escalation]:
        """Return the escalation rules by tier that has one."""
        return {name: tier.escalation for name, tier in self.artefact.tiers.items() if tier.escalation is not None}

    def judge(self, messages: Sequence[Message], tools: Sequence[Tool]) -> dict[str, float]:
        """Return `estimate` of `features`."""
        return self.estimate(self.features(messages, tools))


def top_only(tiers: Sequence[str]) -> dict[str, float]:
    """Return placeholder estimates for a policy without a router: only the last tier is good enough. If a route does not
    offer it, the last offered tier has the best quality."""
    return {tier: 1.0 if tier == tiers[-1] else 1e-6 * (rank + 1) for rank, tier in enumerate(tiers)}
