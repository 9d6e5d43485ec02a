"""Strikes keys and tokens out of text that passes on: error texts of upstreams and workers, and the log."""

import logging
import re
from collections.abc import Sequence

STRUCK = "(struck out)"
MIN_SECRET_CHARS = 6
"""A shorter secret is not searched for: it would strike out words."""
_KEYS = re.compile(
    r"(?i)\b(?P<scheme>bearer|basic)\s+[\w.~+/=-]{6,}|\b(?:sk|pk|rk|hw|gsk|xai|hf|ghp|AKIA)[-_]?[A-Za-z0-9][\w-]{14,}"
    r"|(?P<name>\b(?:api[-_ ]?key|authorization|token|secret|password)[\"']?\s*[=:]\s*[\"']?)(?!bearer\b|basic\b)[\w.~+/=-]{6,}"
)
"""Authorization values, keys by the prefixes of vendors, and values of fields that are named like secrets."""


def redacted(text: str, secrets: Sequence[str] = ()) -> str:
    """Return the text without these secrets, and without what looks like a key."""
    for secret in secrets:
        if len(secret) >= MIN_SECRET_CHARS:
            text = text.replace(secret, STRUCK)
    return _KEYS.sub(_struck, text)


def _struck(match: "re.Match[str]") -> str:
    scheme, name = match["scheme"], match["name"]
    return f"{scheme} {STRUCK}" if scheme else f"{name or ''}{STRUCK}"


class RedactingFormatter(logging.Formatter):
    """Formatter of log lines, tracebacks included, without keys."""

    def __init__(self, format: str, secrets: Sequence[str]) -> None:
        super().__init__(format)
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record), self._secrets)
