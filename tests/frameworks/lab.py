"""What nano can do: a question that takes two calls, one after the other, and what its tools know."""

import json
from typing import Any

SYSTEM = "You are a careful agent. Use the tools when they help."
QUESTION = "What is the city of the owner of the lamp?"
ANSWER = "The city is Oslo."

_OWNERS = {"lamp": "Greta", "drum": "Hugo", "mirror": "Nadia"}
_CITIES = {"Greta": "Oslo", "Hugo": "Lima", "Nadia": "Rome"}


def get_owner(item: str) -> str:
    """Get the owner of a item."""
    return json.dumps({"owner": _OWNERS[item]})


def get_city(person: str) -> str:
    """Get the city of a person."""
    return json.dumps({"city": _CITIES[person]})


TOOLS = {"get_owner": get_owner, "get_city": get_city}
_SUBJECTS = {"get_owner": "item", "get_city": "person"}


def functions() -> list[dict[str, Any]]:
    """As chat completions spell them."""
    return [_function(name, _SUBJECTS[name]) for name in TOOLS]


def result(name: str, arguments: dict[str, str]) -> str:
    return TOOLS[name](**arguments)


def _function(name: str, subject: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {subject: {"type": "string"}}, "required": [subject]}
    return {"name": name, "description": TOOLS[name].__doc__, "parameters": schema}
