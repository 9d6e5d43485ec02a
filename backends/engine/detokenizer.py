"""Token ids to text while they come: whole characters only, and joined it is what decoding all ids at once gives."""

from typing import Protocol

MAX_HELD_TOKENS = 64
"""A character takes at most a few tokens: more than this is no character that will be completed."""


class Decoder(Protocol):
    """A `tokenizers.Tokenizer`, or a fake of it."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str: ...


class Detokenizer:
    """Text of a token may depend on its neighbour (leading spaces, split characters), so each new token is decoded behind
    the last ones that were complete:

        ids   ........ [start ...... done) [done ........ end)
               sent        sent, context       not yet sent
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._ids: list[int] = []
        self._done = 0
        self._context = ""

    def feed(self, token: int) -> str:
        """New text, empty while a character is incomplete."""
        self._ids.append(token)
        text = self._decoder.decode(self._ids)
        if text.endswith("�") and len(self._ids) - self._done < MAX_HELD_TOKENS:
            return ""
        return self._advance(text)

    def close(self) -> str:
        """What is left: replacement characters for bytes that never became whole."""
        return self._advance(self._decoder.decode(self._ids)) if self._done < len(self._ids) else ""

    def _advance(self, text: str) -> str:
        new = text[len(self._context) :]
        if not new and len(self._ids) > MAX_HELD_TOKENS:  # an endless row of silent tokens
            del self._ids[self._done :]
        if new:
            self._ids = self._ids[self._done :]
            self._context = self._decoder.decode(self._ids)
        self._done = len(self._ids)
        return new
