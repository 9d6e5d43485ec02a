from datetime import datetime

import pytest

from gateway.errors import BadRequest
from gateway.request import Message, Tool
from gateway.text.template import ChatTemplate

NOW = datetime(2026, 1, 1)
HELLO = (Message(role="user", content="hello"),)
HOSTILE = (
    "{% for a in range(3000) %}{% for b in range(3000) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(9) %}{{ a }}{% endfor %}{% endfor %}",
    "{{ '%0500000000d' % 1 }}",
    "{{ '%*d' % (500000000, 1) }}",
    "{{ '{:0500000000d}'.format(1) }}",
    "{{ '{:{}}'.format(1, 500000000) }}",
    "{{ '%0500000000d'|format(1) }}",
    "{{ 'x' * 500000000 }}",
    "{{ [0] * 500000000 }}",
    "{{ 'x'.center(500000000) }}",
    "{{ 'x'|center(500000000) }}",
    "{{ 'x'.ljust(500000000) }}",
    "{{ 'x'.zfill(500000000) }}",
    "{{ 'x\ny'|indent(500000000) }}",
    "{{ {'a': 1}|tojson(indent=500000000) }}",
    "{{ 'x'|batch(500000000, 0)|list }}",
    "{{ [1]|slice(500000000)|list }}",
    "{{ 9 ** (9 ** 9) }}",
    "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=9) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x='xx') %}{% for i in range(60) %}{% set ns.x = ns.x.replace('x', 'xx') %}{% endfor %}",
    "{% set ns = namespace(x='xx') %}{% for i in range(60) %}{% set ns.x = ns.x|replace('x', 'xx') %}{% endfor %}",
    "{% set ns = namespace(x='xx') %}{% for i in range(60) %}{% set ns.x = ns.x.join(ns.x|list) %}{% endfor %}",
    "{% set ns = namespace(x='xx') %}{% for i in range(60) %}{% set ns.x = ns.x|list|join(ns.x) %}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
    "{% for x in [1] recursive %}{{ loop([1, 1]) if loop.depth < 40 }}{% endfor %}",
    "{{ lipsum(n=1000000) }}",
)


@pytest.mark.parametrize("source", HOSTILE)
def test_endless_rendering_is_refused(source: str) -> None:
    with pytest.raises(BadRequest):
        ChatTemplate({"default": source}, {}).render(HELLO, (), now=NOW)


def test_long_conversation_is_within_the_budget() -> None:
    source = (
        "{% for m in messages %}{% for part in [1, 2] %}<{{ m.role }}>{{ m.content + '\n' }}{{ '%d' % part }}"
        "{% endfor %}{% endfor %}{% for t in tools %}{{ t|tojson(indent=4) }}{% endfor %}"
    )
    messages = tuple(Message(role="user", content="x" * 1_000) for _ in range(10_000))
    tools = (Tool(name="f", parameters={"type": "object", "properties": {}}),)
    text = ChatTemplate({"default": source}, {}).render(messages, tools, now=NOW)
    assert len(text) > 20_000_000


def test_operators_and_filters_keep_their_results() -> None:
    source = (
        "{{ 'a' ~ 1 ~ None }}|{{ '%s-%03d' % ('b', 7) }}|{{ 'ab' * 2 }}|{{ [1, 2]|join(', ') }}|{{ 'x'|center(3) }}|"
        "{{ 'aba'|replace('a', 'cc') }}|{{ 2 ** 5 }}|{{ messages|map(attribute='role')|join('+') }}|"
        "{{ {'k': [1]}|tojson(indent=1) }}|{{ 5000|tojson }}"
    )
    text = ChatTemplate({"default": source}, {}).render(HELLO, (), now=NOW)
    assert text == 'a1None|b-007|abab|1, 2| x |ccbcc|32|user|{\n "k": [\n  1\n ]\n}|5000'
