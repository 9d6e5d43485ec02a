"""Every operation of the OpenAPI document, asked with what its schemas allow and with what they do not: never a 500, never a
hang, and every answer has the type and the shape that the document says."""

from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gateway.api.openapi import openapi_document
from tests.contract.running import gateway_in_a_thread
from tests.served import Served

EXAMPLES, TIMEOUT_S = 4, 60.0
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]
SCHEMA = schemathesis.openapi.from_dict(openapi_document("1"))
OPERATIONS = {operation.ok().label: operation.ok() for operation in SCHEMA.get_all_operations()}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with gateway_in_a_thread(tmp_path_factory.mktemp("contract")) as served:
        yield served


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


@pytest.mark.parametrize("label", OPERATIONS)
def test_operation_conforms_to_its_document(label: str, served: Served, session: requests.Session) -> None:
    operation = OPERATIONS[label]
    modes = [operation.as_strategy(generation_mode=mode) for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)]

    @settings(max_examples=EXAMPLES, database=None)
    @given(case=st.one_of(modes), known=st.booleans())
    def asked(case: Any, known: bool) -> None:
        if known and isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = "auto"
        response = case.call(base_url=served.url, session=session, timeout=TIMEOUT_S)
        case.validate_response(response, checks=CHECKS)

    asked()
