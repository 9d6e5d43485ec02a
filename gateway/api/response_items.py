"""The output items of a response: the JSON of each, and the events that add, fill and complete it."""

from dataclasses import dataclass
from typing import Any, ClassVar

Data = dict[str, Any]
Events = list[tuple[str, Data]]


@dataclass(slots=True)
class TextItem:
    id: str
    text: str = ""
    status: str = "in_progress"
    prefix: ClassVar[str] = "msg"
    delta: ClassVar[str] = "response.output_text.delta"

    def data(self) -> Data:
        content = [] if self.status == "in_progress" else [self._part(self.text)]
        return {"id": self.id, "type": "message", "role": "assistant", "status": self.status, "content": content}

    def begins(self) -> Events:
        return [("response.content_part.added", {"content_index": 0, "part": self._part("")})]

    def gains(self, text: str) -> Data:
        return {"content_index": 0, "delta": text, "logprobs": []}

    def ends(self) -> Events:
        return [
            ("response.output_text.done", {"content_index": 0, "text": self.text, "logprobs": []}),
            ("response.content_part.done", {"content_index": 0, "part": self._part(self.text)}),
        ]

    def _part(self, text: str) -> Data:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


@dataclass(slots=True)
class ReasoningOut:
    id: str
    text: str = ""
    status: str = "in_progress"
    prefix: ClassVar[str] = "rs"
    delta: ClassVar[str] = "response.reasoning_text.delta"

    def data(self) -> Data:
        content = [] if self.status == "in_progress" else [{"type": "reasoning_text", "text": self.text}]
        return {"id": self.id, "type": "reasoning", "summary": [], "content": content, "status": self.status}

    def begins(self) -> Events:
        return []

    def gains(self, text: str) -> Data:
        return {"content_index": 0, "delta": text}

    def ends(self) -> Events:
        return [("response.reasoning_text.done", {"content_index": 0, "text": self.text})]


@dataclass(slots=True)
class CallItem:
    """A function call. `text` is its arguments."""

    id: str
    call_id: str
    name: str
    text: str = ""
    status: str = "in_progress"
    delta: ClassVar[str] = "response.function_call_arguments.delta"

    def data(self) -> Data:
        return {
            "id": self.id,
            "type": "function_call",
            "call_id": self.call_id,
            "name": self.name,
            "arguments": self.text,
            "status": self.status,
        }

    def begins(self) -> Events:
        return []

    def gains(self, text: str) -> Data:
        return {"delta": text}

    def ends(self) -> Events:
        return [("response.function_call_arguments.done", {"name": self.name, "arguments": self.text})]


Item = TextItem | ReasoningOut | CallItem
