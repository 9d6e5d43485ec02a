from pathlib import Path

import pytest

from gateway.settings import TABLE, Settings, SettingsError, read_settings


def test_empty_environment_gives_the_defaults() -> None:
    assert read_settings({}) == read_settings({"HEADWAY_PORT": ""}) == Settings()


def test_variables_are_read() -> None:
    settings = read_settings({"HEADWAY_PORT": "9000", "HEADWAY_LEDGER": "/tmp/l.sqlite", "HEADWAY_LOG_LEVEL": "debug"})
    assert (settings.port, settings.ledger, settings.log_level) == (9000, Path("/tmp/l.sqlite"), "DEBUG")


def test_the_standard_variables_of_opentelemetry_are_read() -> None:
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}
    assert read_settings(endpoint).spans == "otlp"
    assert read_settings(endpoint | {"OTEL_TRACES_EXPORTER": "console"}).spans == "console"
    assert read_settings(endpoint | {"HEADWAY_SPANS": "file:x"}).spans == "file:x"
    assert read_settings(endpoint | {"OTEL_SDK_DISABLED": "true"}).spans == "none"
    sampler = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}
    assert read_settings(sampler).span_sample == 0.25
    assert read_settings(sampler | {"OTEL_TRACES_SAMPLER": "always_off"}).span_sample == 0.0
    assert read_settings({"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true"}).capture_content
    assert not read_settings({"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "false"}).capture_content


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HEADWAY_PORT", "x"),
        ("HEADWAY_PORT", "70000"),
        ("HEADWAY_SPANS", "jaeger"),
        ("HEADWAY_SPAN_SAMPLE", "2"),
        ("HEADWAY_LEDGER_DAYS", "0"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "perhaps"),
        ("HEADWAY_LOG_LEVEL", "loud"),
        ("HEADWAY_STOP_GRACE_S", "-1"),
    ],
)
def test_a_bad_value_names_its_variable(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=variable):
        read_settings({variable: value})


def test_settings_table_covers_every_field_with_its_range() -> None:
    assert {field for field, _, _ in TABLE.values()} == set(Settings.__struct_fields__)
    assert all(meaning for _, _, meaning in TABLE.values())
