"""A model's format of tool calls and reasoning, derived from its chat template: provides the parser and the grammar."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from backends.wire import CallForm, Grammar
from gateway.parsers.event_codec import EventParser
from gateway.parsers.events import Calls, Parser
from gateway.parsers.hermes import hermes_parser
from gateway.parsers.llama_json import llama_parser
from gateway.parsers.mistral import mistral_parser
from gateway.parsers.qwen_coder import qwen_coder_parser
from gateway.parsers.think import TextParser, ThinkParser
from gateway.request import Tool

CallStyle = Literal["hermes", "qwen_coder", "llama_json", "mistral", "said"]
Thinks = Literal["no", "opens", "inside"]
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


class OutputFormat(NamedTuple):
    """Output format. `thinks`: the model opens its reasoning itself, or the prompt ends inside it. `spaced`: line breaks inside
    the call's marks.

    `named`: Mistral's newer form. `has_effort`: the template uses the reasoning effort.
    """

    calls: CallStyle = "hermes"
    thinks: Thinks = "no"
    has_effort: bool = False
    spaced: bool = False
    named: bool = False

    def parser(self, calls: Calls, tools: Sequence[Tool]) -> Parser:
        """Return the parser. It looks for calls only if the request has tools."""
        answer = self._call_parser(calls, tools) if tools or self.calls == "said" else TextParser()
        return ThinkParser(answer, inside=self.thinks == "inside") if self.thinks != "no" else answer

    def _call_parser(self, calls: Calls, tools: Sequence[Tool]) -> Parser:
        match self.calls:
            case "hermes":
                return hermes_parser(calls)
            case "qwen_coder":
                return qwen_coder_parser(calls, tools)
            case "llama_json":
                return llama_parser(calls)
            case "mistral":
                return mistral_parser(calls)
            case "said":
                return EventParser(calls)

    def grammar(self, tools: Sequence[Tool], *, param: str, required: bool, parallel: bool) -> Grammar:
        """Return a grammar that allows calls of these tools only."""
        forms = tuple(self._form(tool) for tool in tools)
        trigger, prefix, separator, suffix = "<tool_call>", "", "\n" if self.spaced else "", ""
        if self.calls == "llama_json":
            trigger, separator = '{"name": "', "; "
        elif self.calls == "mistral" and self.named:
            trigger, separator = "[TOOL_CALLS]", ""
        elif self.calls == "mistral":
            trigger, prefix, separator, suffix = "[TOOL_CALLS]", "[TOOL_CALLS][", ", ", "]"
            if not required:
                forms = tuple(CallForm(prefix + form.begin, form.schema, form.end + suffix) for form in forms)
        return Grammar(
            kind="calls",
            param=param,
            calls=forms,
            trigger=trigger,
            prefix=prefix if required else "",
            separator=separator,
            suffix=suffix if required else "",
            required=required,
            parallel=parallel,
            thinks=self.thinks,
        )

    def _form(self, tool: Tool) -> CallForm:
        schema = json.dumps(tool.parameters if tool.parameters and tool.strict else ANY_OBJECT)
        name = json.dumps(tool.name)
        gap = "\n" if self.spaced else ""
        match self.calls:
            case "hermes" | "said":
                begin = f'<tool_call>{gap}{{"name": {name}, "arguments": '
                return CallForm(begin, schema, f"}}{gap}</tool_call>")
            case "llama_json":
                return CallForm(f'{{"name": {name}, "parameters": ', schema, "}")
            case "mistral" if self.named:
                return CallForm(f"[TOOL_CALLS]{tool.name}[ARGS]", schema, "")
            case "mistral":
                return CallForm(f'{{"name": {name}, "arguments": ', schema, "}")
            case "qwen_coder":
                begin = f"<tool_call>\n<function={tool.name}>\n"
                return CallForm(begin, schema, "\n</function>\n</tool_call>", "qwen_xml")


def output_format_of(templates: Mapping[str, str], prompt: str) -> OutputFormat:
    """Return the format derived from the templates. `prompt` is one of their renderings, up to where the answer begins."""
    source = "\n".join(templates.values())
    inside = prompt.rstrip().endswith("<think>")
    return OutputFormat(
        calls=_call_style(source),
        thinks="inside" if inside else "opens" if "</think>" in source else "no",
        has_effort="reasoning_effort" in source or "enable_thinking" in source,
        spaced="<tool_call>\n" in source or "<tool_call>\\n" in source,
        named="[ARGS]" in source,
    )


def _call_style(source: str) -> CallStyle:
    if "<function=" in source:
        return "qwen_coder"
    if "<tool_call>" in source:
        return "hermes"
    if "[TOOL_CALLS]" in source:
        return "mistral"
    if "<|python_tag|>" in source or ('"parameters"' in source and "ipython" in source):
        return "llama_json"
    return "hermes"
