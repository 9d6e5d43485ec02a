import logging
from pathlib import Path

import pytest

from gateway.runtime.redaction import STRUCK, RedactingFormatter, redacted
from tests.fake_upstream import status
from tests.gateway.fleet.test_upstream import served
from tests.served import ask


@pytest.mark.parametrize(
    "text",
    [
        "Incorrect API key provided: sk-proj-SECRET0123456789abcdef",
        "Authorization: Bearer SECRET0123456789",
        "bearer SECRET.0123/456+789==",
        'config {"api_key": "SECRET0123"} is wrong',
        "x-api-key=SECRET0123",
        "hw-SECRET_0123456789-abcdefghijklmnop is revoked",
        "password: SECRET0123",
    ],
)
def test_keys_are_struck_out(text: str) -> None:
    assert "SECRET" not in redacted(text) and STRUCK in redacted(text)


def test_known_secrets_are_struck_out_and_words_stay() -> None:
    assert redacted("no plain-one here", ["plain-one"]) == f"no {STRUCK} here"
    plain = "the bearer of this message has a token budget of 12 and a key to the skating rink"
    assert redacted(plain, ["a", ""]) == plain


def test_log_lines_and_tracebacks_have_no_keys() -> None:
    try:
        raise ValueError("refused: Bearer SECRET0123456789")
    except ValueError as error:
        record = logging.LogRecord("headway", logging.ERROR, "", 1, "key %s", ("plain-SECRET",), (type(error), error, None))
    line = RedactingFormatter("%(message)s", ("plain-SECRET",)).format(record)
    assert "SECRET" not in line and STRUCK in line


async def test_key_in_the_error_of_an_upstream_reaches_no_caller(tmp_path: Path) -> None:
    async with served(tmp_path, retries=0) as (one, upstream):
        for code in (400, 500):
            upstream.replies.append(status(code, "wrong key secret: Bearer secret, sk-other0123456789abcdef"))
            async with one.http.post(f"{one.url}/v1/chat/completions", json=ask()) as answer:
                said = await answer.text()
            assert "sk-other" not in said and "Bearer secret" not in said
        async with one.http.get(f"{one.url}/v1/headway/workers") as answer:
            assert "sk-other" not in await answer.text()
