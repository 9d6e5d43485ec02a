"""Renders chat templates as Hugging Face does: the same sandbox, filters and globals give the same text.

A template is compiled once. Rendering has no state, uses no clock, and is thread-safe.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from gateway.errors import BadRequest
from gateway.request import Message, Tool
from gateway.text.conversation import as_messages, as_tools
from gateway.text.template_budget import Budget, check_method, check_operator, concat, count_steps, guard_filters, joined, step

MAX_SOURCE_CHARS = 1_000_000
"""Characters of a template's source: a hundred times the longest public one."""
_encode_json = json.JSONEncoder(ensure_ascii=False).encode


class ChatTemplate:
    """Renders a conversation as the text that the model was trained on, up to where its answer begins."""

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        """Compile `sources`: a template called `default`, or `tool_use`, or both. Raises ValueError if one does not compile."""
        environment = _environment()
        self._by_name = {name: _compile(environment, name, source) for name, source in sources.items()}
        if not self._by_name.keys() & {"default", "tool_use"}:
            raise ValueError(f"no chat template is called default or tool_use, only {', '.join(sorted(sources)) or 'none'}")
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Message], tools: Sequence[Tool], *, now: datetime, effort: str | None = None) -> str:
        """Render a conversation. `effort` is the reasoning effort, `none` to disable reasoning, if the template supports it.

        Raises BadRequest with the template's own message if it refuses the conversation.
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
            text = joined(template.root_render_func(context), _budget(messages, tools))
            context.vars.clear()  # macros keep a reference to their context: without this only the garbage collector frees it
            return text
        except Exception as error:  # a template is foreign code: any exception means that it refuses the conversation
            raise BadRequest(_refusal(error), param="messages") from error

    def _choose(self, *, with_tools: bool) -> jinja2.Template:
        if with_tools and "tool_use" in self._by_name:
            return self._by_name["tool_use"]
        if "default" not in self._by_name:
            raise BadRequest("this model's chat template needs tools: send tools, or use another model", param="tools")
        return self._by_name["default"]


def _budget(messages: Sequence[Message], tools: Sequence[Tool]) -> Budget:
    """Return the budget of a conversation. The size of a tool's schema is estimated by its encoding."""
    chars = sum(len(message.content) + len(message.reasoning) for message in messages)
    chars += sum(len(call.arguments) for message in messages for call in message.tool_calls)
    chars += sum(len(tool.description) + len(_encode_json(tool.parameters)) for tool in tools)
    return Budget(len(messages) + len(tools), chars)


def _refusal(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "the conversation is nested too deeply for this model's chat template: flatten tool schemas and arguments"
    return f"this model's chat template refuses the conversation: {str(error)[:500] or type(error).__name__}"


def _compile(environment: jinja2.Environment, name: str, source: str) -> jinja2.Template:
    if len(source) > MAX_SOURCE_CHARS:
        raise ValueError(f"chat template {name} has {len(source):,} characters: at most {MAX_SOURCE_CHARS:,} are allowed")
    try:
        template = environment.from_string(count_steps(environment.parse(source)))
    except (jinja2.TemplateError, RecursionError, SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f"chat template {name} does not compile: {error}") from error
    template.globals = dict(template.globals)  # a plain dict: a ChainMap would be walked for every rendering
    return template


class _Sandbox(ImmutableSandboxedEnvironment):
    """Sandbox that looks up `message.role` in a plain dict directly, the most frequent access in templates. jinja2 would first
    fail to find an attribute."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    budget_step = staticmethod(step)
    budget_concat = staticmethod(concat)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        check_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        if obj is step:
            return step()
        owner = getattr(obj, "__self__", None)
        if owner is not None:
            check_method(owner, obj.__name__, args)
        return super().call(context, obj, *args, **kwargs)

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
    guard_filters(environment)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["dict"] = _SafeDict()
    environment.globals["namespace"] = _SafeNamespace
    return environment


class _GenerationBlock(Extension):
    """Renders the body of `{% generation %}`, which marks the assistant's text for training."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Parser) -> CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_body"), [], [], body, lineno=line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _SafeDict:
    """The type `dict` without access to its attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _SafeNamespace(Namespace):
    """A namespace without underscore names, which could reach the interpreter."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # no parameter named `self`, so that `namespace(self=...)` works
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
        raise jinja2.exceptions.SecurityError(f"a chat template's namespace does not allow underscore names, got {name!r}")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return plain JSON: jinja2's own filter escapes HTML characters."""
    if not (ensure_ascii or indent or separators or sort_keys):
        return _encode_json(value)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
