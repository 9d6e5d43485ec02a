"""Outcome labels of answered requests: matched to their request, stored, and read back for training."""

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from gateway.errors import BadRequest, BodyTooLarge, NotFound
from gateway.ledger.ledger import open_reader
from gateway.ledger.rows import OutcomeRow
from gateway.ledger.store import Values
from gateway.training.asked_digest import is_what_was_asked
from gateway.training.outcome import Outcome, TrainingError
from gateway.training.outcome_reader import joined, parse_outcome

MAX_LABEL_BYTES = 1_000_000
"""Bytes of one label: a conversation of some 200,000 tokens. It is stored whole."""
Read = Callable[[str, Values], list[dict[str, Any]]]
_TRAINED = "SELECT tenant, body FROM outcomes WHERE length(body) > 0 ORDER BY at, rowid"


class OutcomeBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Quality of one answer: `right`, or a graded `score`. `decision` is the answer's `x-headway-decision-id`, `request` its
    id. Training needs `messages` (and `tools`), as the ledger stores no text."""

    decision: str = ""
    request: str = ""
    right: bool | None = None
    score: float | None = None
    messages: list[dict[str, Any]] = []
    tools: list[dict[str, Any]] = []


class LabelledRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The answer that a label was stored for."""

    decision: str
    model: str
    tier: str
    score: float
    trainable: bool


def parse_body(body: bytes) -> OutcomeBody:
    """Decode and check a request body. Raises BodyTooLarge or BadRequest."""
    if len(body) > MAX_LABEL_BYTES:
        raise BodyTooLarge(f"the outcome has {len(body):,} bytes: send at most {MAX_LABEL_BYTES:,}, or no messages")
    try:
        parsed = msgspec.json.decode(body, type=OutcomeBody)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the outcome cannot be read: {error}") from error
    if bool(parsed.decision) == bool(parsed.request):
        raise BadRequest("name the answer: either a `decision` or a `request`", param="decision")
    if (parsed.right is None) == (parsed.score is None):
        raise BadRequest("grade the answer: either `right` or a `score`", param="right")
    if parsed.score is not None and not 0.0 <= parsed.score <= 1.0:
        raise BadRequest(f"score is {parsed.score:g}: it must be from 0 to 1", param="score")
    return parsed


def label(read: Read, body: OutcomeBody, *, tenant: str | None, at: float) -> OutcomeRow:
    """Return the row of one label, which replaces an earlier one of the same answer. `tenant` None may label any tenant's
    answer. Its messages must be those that were asked. Blocks. Raises NotFound or BadRequest."""
    by, name = ("decision", body.decision) if body.decision else ("request", body.request)
    where, values = f"{by} = ? AND tier <> ''", [name]
    if tenant is not None:
        where, values = f"{where} AND tenant = ?", [name, tenant]
    columns = "decision, request, tenant, run, model, tier, asked_digest"
    rows = read(f"SELECT {columns} FROM requests WHERE {where} LIMIT 2", values)
    if not rows:
        raise NotFound(f'there is no {by} "{name}" in the ledger: it is not yours, or too old', param=by)
    if len(rows) > 1:
        raise BadRequest("the request has several answers: name the `decision` of one", param="request")
    score = float(bool(body.right)) if body.score is None else body.score
    digest = rows[0].pop("asked_digest")
    outcome = _outcome(body, rows[0], score, digest) if body.messages and digest else b""
    return OutcomeRow(at=at, score=score, body=outcome, **rows[0])


def _outcome(body: OutcomeBody, row: Mapping[str, Any], score: float, digest: str) -> bytes:
    line = {"messages": body.messages, "tools": body.tools, "model": row["tier"], "score": score}
    try:
        outcome = parse_outcome(msgspec.json.encode(line))
    except (msgspec.ValidationError, TrainingError) as error:
        raise BadRequest(f"messages: {error}", param="messages") from error
    if not is_what_was_asked(digest, outcome.messages, outcome.tools, request=row["request"]):
        raise BadRequest(
            "messages are not those that this answer was given to: send the request's own, or none", param="messages"
        )
    return msgspec.json.encode(outcome)


def outcomes_of(ledger: Path) -> Iterator[Outcome]:
    """Yield stored labels, joined by conversation with the last label of each tier. Raises TrainingError or OSError."""
    if not ledger.exists():
        raise FileNotFoundError(f"{ledger}: there is no such ledger")
    try:
        with closing(open_reader(ledger)) as connection:
            rows = connection.execute(_TRAINED).fetchall()
    except sqlite3.Error as error:
        raise TrainingError(f"the ledger cannot be read: {error}") from error
    decoder = msgspec.json.Decoder(Outcome)
    yield from joined(msgspec.structs.replace(decoder.decode(body), tenant=tenant) for tenant, body in rows)
