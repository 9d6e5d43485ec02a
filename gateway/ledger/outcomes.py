"""Labels that came back for what was decided: found by their request, kept, and read again to train on."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from gateway.errors import BadRequest, NotFound
from gateway.ledger.ledger import open_reader
from gateway.ledger.rows import OutcomeRow
from gateway.ledger.store import Values
from gateway.training.outcome import Outcome, TrainingError
from gateway.training.outcome_reader import joined, parse_outcome

Read = Callable[[str, Values], list[dict[str, Any]]]
_TRAINED = "SELECT body FROM outcomes WHERE length(body) > 0 ORDER BY at, rowid"


class OutcomeBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How good one answer was: `right`, or a `score` where there is more than right and wrong. `decision` is the answer's
    `x-headway-decision-id`, `request` its id. Only with `messages` (and `tools`) can it be trained on: no text is kept else."""

    decision: str = ""
    request: str = ""
    right: bool | None = None
    score: float | None = None
    messages: list[dict[str, Any]] = []
    tools: list[dict[str, Any]] = []


class LabelledRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What the label was put on."""

    decision: str
    model: str
    tier: str
    score: float
    trainable: bool


def parse_body(body: bytes) -> OutcomeBody:
    """Raises BadRequest."""
    try:
        parsed = msgspec.json.decode(body, type=OutcomeBody)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the outcome cannot be read: {error}") from error
    if bool(parsed.decision) == bool(parsed.request):
        raise BadRequest("name what was answered: either a `decision` or a `request`", param="decision")
    if (parsed.right is None) == (parsed.score is None):
        raise BadRequest("say how good it was: either `right` or a `score`", param="right")
    return parsed


def label(read: Read, body: OutcomeBody, *, tenant: str | None, at: float) -> OutcomeRow:
    """The row of one label; `tenant` None may label everybody's. Blocks. Raises NotFound or BadRequest."""
    by, name = ("decision", body.decision) if body.decision else ("request", body.request)
    where, values = f"{by} = ? AND tier <> ''", [name]
    if tenant is not None:
        where, values = f"{where} AND tenant = ?", [name, tenant]
    found = read(f"SELECT decision, request, tenant, run, model, tier FROM requests WHERE {where} LIMIT 2", values)
    if not found:
        raise NotFound(f'there is no {by} "{name}" in the ledger: it is not yours, or too old', param=by)
    if len(found) > 1:
        raise BadRequest("the request has several answers: name the `decision` of one", param="request")
    score = float(bool(body.right)) if body.score is None else body.score
    outcome = _outcome(body, found[0]["tier"], score) if body.messages else b""
    return OutcomeRow(at=at, score=score, body=outcome, **found[0])


def _outcome(body: OutcomeBody, tier: str, score: float) -> bytes:
    line = {"messages": body.messages, "tools": body.tools, "model": tier, "score": score}
    try:
        return msgspec.json.encode(parse_outcome(msgspec.json.encode(line)))
    except (msgspec.ValidationError, TrainingError) as error:
        raise BadRequest(f"messages: {error}", param="messages") from error


def outcomes_of(ledger: Path) -> Iterator[Outcome]:
    """Labels of the same question are put together, the last of each tier holds. Raises TrainingError or OSError."""
    if not ledger.exists():
        raise FileNotFoundError(f"{ledger}: there is no such ledger")
    try:
        with closing(open_reader(ledger)) as connection:
            rows = connection.execute(_TRAINED).fetchall()
    except sqlite3.Error as error:
        raise TrainingError(f"the ledger cannot be read: {error}") from error
    decoder = msgspec.json.Decoder(Outcome)
    yield from joined(decoder.decode(body) for (body,) in rows)
