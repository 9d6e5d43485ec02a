"""Settings of a process: one table of environment variables, read once. Routing and limits are in the policy, not here."""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec


class SettingsError(ValueError):
    """A setting is invalid. The message names the variable, its value and the valid values."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one gateway. `host` and `port` None mean the policy's. `ledger` None keeps rows in memory only."""

    host: str | None = None
    port: int | None = None
    ledger: Path | None = None
    ledger_days: float = 90.0
    spans: str = ""
    span_sample: float = 1.0
    capture_content: bool = False
    log_level: str = "INFO"
    stop_grace_s: float = 5.0
    policy_folders: tuple[Path, ...] = ()


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


def _days(text: str) -> float:
    if not 0 < (days := float(text)) <= 36_500:
        raise ValueError
    return days


def _spans(text: str) -> str:
    if text not in ("none", "otlp", "console") and not text.startswith("file:"):
        raise ValueError
    return text


def _otlp(text: str) -> str:
    """Select OTLP: an endpoint alone is enough to turn it on."""
    return "otlp"


def _sampler(text: str) -> float | None:
    """Return the sampler's share; None leaves it to the argument. The caller's sampled flag always wins, as with
    `parentbased_`."""
    kind = text.removeprefix("parentbased_")
    if kind not in (known := {"always_on": 1.0, "always_off": 0.0, "traceidratio": None}):
        raise ValueError
    return known[kind]


def _disabled(text: str) -> str | None:
    return "none" if text.lower() == "true" else None


def _capture(text: str) -> bool:
    if text.lower() not in ("true", "false", "span_only", "no_content"):
        raise ValueError
    return text.lower() in ("true", "span_only")


FOLDERS = "HEADWAY_POLICY_FOLDERS"


def _folders(text: str) -> tuple[Path, ...]:
    return tuple(Path(folder).resolve() for folder in text.split(os.pathsep) if folder)


def policy_folders(env: Mapping[str, str]) -> tuple[Path, ...]:
    """Return the folders, besides its own, that a policy may include files from."""
    return _folders(env.get(FOLDERS, ""))


TABLE: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "HEADWAY_HOST": ("host", str, "an address to listen on, in place of the policy's"),
    "HEADWAY_PORT": ("port", _port, "a port from 0 to 65535, in place of the policy's"),
    "HEADWAY_LEDGER": ("ledger", Path, "a file for the ledger; without it rows stay in memory"),
    "HEADWAY_LEDGER_DAYS": ("ledger_days", _days, "days that the ledger's rows are kept, up to 36500"),
    "OTEL_EXPORTER_OTLP_ENDPOINT": ("spans", _otlp, "the address of an OTLP receiver"),
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": ("spans", _otlp, "the address of an OTLP receiver's traces"),
    "OTEL_TRACES_EXPORTER": ("spans", _spans, "`otlp`, `console` or `none`"),
    "HEADWAY_SPANS": ("spans", _spans, "`otlp`, `console`, `none`, or `file:PATH` for JSON lines; wins over OTEL_ variables"),
    "OTEL_SDK_DISABLED": ("spans", _disabled, "`true` for no spans at all"),
    "OTEL_TRACES_SAMPLER_ARG": ("span_sample", _share, "the share of requests to trace, from 0 to 1"),
    "OTEL_TRACES_SAMPLER": ("span_sample", _sampler, "always_on, always_off, traceidratio or parentbased_ with one of them"),
    "HEADWAY_SPAN_SAMPLE": ("span_sample", _share, "the share of requests to trace, from 0 to 1"),
    "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": (
        "capture_content",
        _capture,
        "`true` to record messages in the spans, or `false`",
    ),
    "HEADWAY_LOG_LEVEL": ("log_level", _level, "DEBUG, INFO, WARNING or ERROR"),
    FOLDERS: ("policy_folders", _folders, "folders, joined by colons, that policies may include files from besides their own"),
    "HEADWAY_STOP_GRACE_S": ("stop_grace_s", _seconds, "seconds that running answers have to end at a stop"),
}
"""Variable: (field, parser, valid values). A later variable overrides an earlier one of the same field. A parser's None leaves
the field unchanged."""


def read_settings(env: Mapping[str, str]) -> Settings:
    """Parse the settings. An empty variable counts as not set. Raises SettingsError."""
    values: dict[str, Any] = {}
    for variable, (name, read, meaning) in TABLE.items():
        if text := env.get(variable, ""):
            try:
                value = read(text)
            except ValueError as error:
                raise SettingsError(f"{variable} is {text!r}: it must be {meaning}") from error
            if value is not None:
                values[name] = value
    return Settings(**values)
