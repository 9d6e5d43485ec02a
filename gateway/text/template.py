"""A chat template as Hugging Face runs it: the same sandbox, filters and globals, so that the same text comes out.

Compiled once; rendering has no state, reads no clock, and is safe from several threads.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from gateway.errors import BadRequest
from gateway.request import Message, Tool
from gateway.text.conversation import as_messages, as_tools

_encode_json = json.JSONEncoder(ensure_ascii=False).encode


class ChatTemplate:
    """Turns a conversation into the text that the model was trained on, up to where its answer begins."""

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        """`sources` has a template called `default`, or `tool_use`, or both. Raises ValueError if one does not compile."""
        environment = _environment()
        self._by_name = {name: _compile(environment, name, source) for name, source in sources.items()}
        if not self._by_name.keys() & {"default", "tool_use"}:
            raise ValueError(f"no chat template is called default or tool_use, only {', '.join(sorted(sources)) or 'none'}")
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Message], tools: Sequence[Tool], *, now: datetime, effort: str | None = None) -> str:
        """`effort` is how much to reason, `none` for not at all, where a template knows of it.

        Raises BadRequest with the template's own words where it refuses the conversation.
        """
        variables: dict[str, Any] = {} if effort is None else {"reasoning_effort": effort, "enable_thinking": effort != "none"}
        template = self._choose(with_tools=bool(tools))
        variables |= {
            "messages": as_messages(messages),
            "tools": as_tools(tools) if tools else None,
            "documents": None,
            "add_generation_prompt": True,
            "strftime_now": now.strftime,
        }
        try:
            context = template.new_context(self._special_tokens | variables)
            text = "".join(template.root_render_func(context))
            context.vars.clear()  # macros hold their context: without this only the garbage collector would end them
            return text
        except Exception as error:  # a template is a foreign program: whatever it raises, it refuses this conversation
            raise BadRequest(_refusal(error), param="messages") from error

    def _choose(self, *, with_tools: bool) -> jinja2.Template:
        if with_tools and "tool_use" in self._by_name:
            return self._by_name["tool_use"]
        if "default" not in self._by_name:
            raise BadRequest("this model's chat template needs tools: send tools, or use another model", param="tools")
        return self._by_name["default"]


def _refusal(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "the conversation is nested too deep for this model's chat template: flatten tool schemas and arguments"
    return f"this model's chat template refuses the conversation: {str(error)[:500] or type(error).__name__}"


def _compile(environment: jinja2.Environment, name: str, source: str) -> jinja2.Template:
    try:
        template = environment.from_string(source)
    except jinja2.TemplateError as error:
        raise ValueError(f"chat template {name} does not compile: {error}") from error
    template.globals = dict(template.globals)  # plain: a chain of mappings is walked anew for every rendering
    return template


class _Sandbox(ImmutableSandboxedEnvironment):
    """Where `message.role` is an entry of a plain dict, which is nearly all that templates ask for, it is looked up as one at
    once: jinja2 would first fail to find such an attribute."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict and attribute not in _OF_DICTS:
            try:
                return obj[attribute]
            except KeyError:
                return self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)


_OF_DICTS = frozenset(dir(dict))


def _environment() -> jinja2.Environment:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["dict"] = _SafeDict()
    environment.globals["namespace"] = _SafeNamespace
    return environment


class _GenerationBlock(Extension):
    """`{% generation %}` marks for training what the assistant wrote; here it only renders its body."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Parser) -> CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_body"), [], [], body, lineno=line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _SafeDict:
    """The type `dict` without a way to its attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _SafeNamespace(Namespace):
    """A namespace that takes no underscore names, which could reach the interpreter."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # no named `self`, so that `namespace(self=...)` works
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _refuse_underscore(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a chat template's namespace takes no underscore names, but got {name!r}")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: jinja2's own filter escapes HTML characters."""
    if not (ensure_ascii or indent or separators or sort_keys):
        return _encode_json(value)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
