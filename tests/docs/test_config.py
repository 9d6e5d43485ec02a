"""The generated reference is current, and every key and flag has a description."""

import re
from pathlib import Path

import msgspec
import pytest

from backends.__main__ import _parser
from gateway.policy import schema
from gateway.policy.reference import config_page, field_docs

DOCS = Path(__file__).parents[2] / "docs"
FLAGS = [action for action in _parser()._actions if action.dest != "help"]


def test_committed_config_page_is_current() -> None:
    assert (DOCS / "config.md").read_text() == config_page(), "run `headway policy reference > docs/config.md`"


def test_every_policy_field_has_a_docstring() -> None:
    structs = [value for value in vars(schema).values() if isinstance(value, type) and issubclass(value, msgspec.Struct)]
    assert len(structs) > 15
    for struct in structs:
        assert field_docs()[struct.__name__].keys() == set(struct.__struct_fields__), struct


@pytest.mark.parametrize("action", FLAGS, ids=lambda action: action.dest)
def test_worker_flag_is_on_the_engine_page_with_its_default(action: object) -> None:
    flag, default = action.option_strings[0], action.default  # type: ignore[attr-defined]
    row = re.search(rf"^\| `{flag}[ `].*$", (DOCS / "engine.md").read_text(), re.MULTILINE)
    assert row, f"{flag} is missing in the table of worker flags"
    if default not in (None, False):
        assert f"| `{default}` |" in row.group(), flag
