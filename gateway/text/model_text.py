"""Text and token ids of a conversation for one model, equal to the output of `transformers`.

Tokenizing releases the interpreter lock and may run on a thread. Only the word cache changes after construction.
"""

from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple, Self

from gateway.errors import BadRequest
from gateway.parsers.output_format import output_format_of
from gateway.request import Message, Tool
from gateway.text.safe_splits import SafeSplits, SplitPoints, common_prefix
from gateway.text.template import ChatTemplate
from gateway.text.tokenizer_files import TokenizerFiles, parse_files, read_directory
from gateway.text.word_token_cache import WordTokenCache


class Encoded(NamedTuple):
    """A prompt. `ids` are the tokens of `text` (uint32). `anchors` and `fingerprint` let the next prompt reuse its ids."""

    text: str
    ids: "array[int]"
    anchors: SplitPoints
    fingerprint: str


class ModelText:
    """One model's tokenizer and chat template. Equal fingerprints mean equal ids for every conversation."""

    def __init__(self, files: TokenizerFiles) -> None:
        self.fingerprint = files.fingerprint
        self.tokenizer = files.tokenizer
        self._template = ChatTemplate(files.templates, files.special_tokens)
        self._anchors = SafeSplits(files.tokenizer)
        self._words = WordTokenCache.of(files.tokenizer, self._anchors.contents)
        self.longest_token = max(map(len, files.tokenizer.get_vocab()), default=1)
        """Characters of the longest token. A text of n characters has at least n / longest_token tokens."""
        self.output_format = output_format_of(files.templates, self._probe())

    @classmethod
    def from_directory(cls, path: Path) -> Self:
        """Load the files of a directory. Raises ValueError that names the directory and the missing or invalid file."""
        try:
            return cls.from_files(read_directory(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        """Load from `files` by name, as in `model_files.FILES`. Raises ValueError that names the missing or invalid file."""
        try:
            return cls(parse_files(files))
        except (TypeError, LookupError, AttributeError) as error:  # valid JSON with an unexpected structure
            raise ValueError(f"the tokenizer's configuration cannot be read: {error!r}") from error

    def render(self, messages: Sequence[Message], tools: Sequence[Tool], *, now: datetime, effort: str | None = None) -> str:
        """Return the prompt's text up to where the answer begins. Raises BadRequest if the template refuses."""
        return self._template.render(messages, tools, now=now, effort=effort)

    def encode(self, text: str) -> "array[int]":
        """Return the token ids (uint32) of a text. Nothing is added; special tokens in it are recognised."""
        ids = self._words.encode(text) if self._words is not None else None
        if ids is None:
            ids = array("I", self.tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids)
        return ids

    def plain(self, text: str) -> Encoded:
        """Encode a text that is not a conversation, with the special tokens that the tokenizer adds around it."""
        ids = array("I", self.tokenizer.encode(text, add_special_tokens=True).ids)
        return Encoded(text, ids, SplitPoints(array("I"), array("I")), self.fingerprint)

    def prompt(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        *,
        now: datetime,
        previous: Encoded | None = None,
        effort: str | None = None,
    ) -> Encoded:
        """Render and encode. `previous` is any earlier prompt; its shared part is not tokenized again.

        Raises BadRequest if the template refuses.
        """
        return self.continue_from(previous, self.render(messages, tools, now=now, effort=effort))

    def num_system_tokens(
        self, encoded: Encoded, messages: Sequence[Message], tools: Sequence[Tool], *, now: datetime, effort: str | None = None
    ) -> int:
        """Return the number of leading tokens that do not depend on the messages after the system messages.

        The count ends at the last anchor in that part. It is 0 if the template refuses such a conversation or puts the system
        messages elsewhere.
        """
        system = list(takewhile(lambda message: message.role == "system", messages))
        try:
            one, other = (
                self.render([*system, Message(role="user", content=said)], tools, now=now, effort=effort) for said in "ab"
            )
        except BadRequest:
            return 0
        kept = self._num_kept_anchors(encoded, min(common_prefix(one, other), common_prefix(one, encoded.text)))
        return encoded.anchors.tokens[kept - 1] + 1 if kept else 0

    def continue_from(self, previous: Encoded | None, text: str) -> Encoded:
        """Encode `text` from the last anchor that lies entirely in the part shared with `previous`."""
        if previous is None or previous.fingerprint != self.fingerprint:
            return self._from_scratch(text)
        if previous.text == text:
            return previous
        kept = self._num_kept_anchors(previous, common_prefix(previous.text, text))
        if kept == 0:
            return self._from_scratch(text)
        chars, tokens = previous.anchors.chars[: kept - 1], previous.anchors.tokens[: kept - 1]
        char, token = previous.anchors.chars[kept - 1], previous.anchors.tokens[kept - 1]
        tail = text[char:]
        tail_ids = self.encode(tail)
        places = self._anchors.find(tail, tail_ids)
        if places is None:
            return self._from_scratch(text)
        chars.extend(char + n for n in places.chars)
        tokens.extend(token + n for n in places.tokens)
        return Encoded(text, previous.ids[:token] + tail_ids, SplitPoints(chars, tokens), self.fingerprint)

    def _probe(self) -> str:
        """Return the shortest prompt, which shows how prompts end; "" if the template needs more."""
        try:
            return self.render([Message(role="user", content="?")], (), now=datetime(2000, 1, 1))
        except BadRequest:
            return ""

    def _from_scratch(self, text: str) -> Encoded:
        ids = self.encode(text)
        places = self._anchors.find(text, ids) or SplitPoints(array("I"), array("I"))
        return Encoded(text, ids, places, self.fingerprint)

    def _num_kept_anchors(self, previous: Encoded, common: int) -> int:
        """Return how many anchors of `previous` end within its first `common` characters."""
        places = previous.anchors
        kept = bisect_right(places.chars, common)
        while kept and places.chars[kept - 1] + self._anchors.length(previous.ids[places.tokens[kept - 1]]) > common:
            kept -= 1
        return kept
