"""The settings of a process: one table, read once, passed down. What the gateway decides by is in the policy, not here."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec


class SettingsError(ValueError):
    """Names the variable, its value, and what it may be."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """`host` and `port` None mean the policy's. `ledger` None keeps rows in memory only."""

    host: str | None = None
    port: int | None = None
    ledger: Path | None = None
    spans: str = ""
    span_sample: float = 1.0
    log_level: str = "INFO"
    stop_grace_s: float = 5.0


def _port(text: str) -> int:
    if not 0 <= (port := int(text)) <= 65535:
        raise ValueError
    return port


def _share(text: str) -> float:
    if not 0 <= (share := float(text)) <= 1:
        raise ValueError
    return share


def _seconds(text: str) -> float:
    if not 0 <= (seconds := float(text)) <= 3600:
        raise ValueError
    return seconds


def _level(text: str) -> str:
    if text.upper() not in logging.getLevelNamesMapping():
        raise ValueError
    return text.upper()


def _spans(text: str) -> str:
    if text and text != "otlp" and not text.startswith("file:"):
        raise ValueError
    return text


TABLE: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "HEADWAY_HOST": ("host", str, "an address to listen on, instead of the policy's"),
    "HEADWAY_PORT": ("port", _port, "a port from 0 to 65535, instead of the policy's"),
    "HEADWAY_LEDGER": ("ledger", Path, "a file for the ledger; in memory when not given"),
    "HEADWAY_SPANS": ("spans", _spans, "`otlp`, or `file:PATH` for JSON lines; none when not given"),
    "HEADWAY_SPAN_SAMPLE": ("span_sample", _share, "the share of requests to trace, from 0 to 1"),
    "HEADWAY_LOG_LEVEL": ("log_level", _level, "DEBUG, INFO, WARNING or ERROR"),
    "HEADWAY_STOP_GRACE_S": ("stop_grace_s", _seconds, "seconds that running answers get to end when stopped"),
}
"""Variable: (field, how it is read, what it may be)."""


def read_settings(env: Mapping[str, str]) -> Settings:
    """Raises SettingsError. An empty variable is one that is not given."""
    values: dict[str, Any] = {}
    for variable, (name, read, meaning) in TABLE.items():
        if text := env.get(variable, ""):
            try:
                values[name] = read(text)
            except ValueError as error:
                raise SettingsError(f"{variable} is {text!r}: it must be {meaning}") from error
    return Settings(**values)
