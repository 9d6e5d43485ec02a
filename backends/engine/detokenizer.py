"""Incremental decoding of token ids to whole characters. The joined text equals that of decoding all ids at once."""

from typing import Protocol

MAX_HELD_TOKENS = 64
"""Tokens after which an incomplete character is sent as it is: a character takes at most a few tokens."""


class Decoder(Protocol):
    """A `tokenizers.Tokenizer`, or a test's replacement."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str: ...


class Detokenizer:
    """Decodes each new token after the last complete ones, since its text may depend on its neighbour (spaces, split
    characters).

        ids   ........ [start ...... done) [done ........ end)
               sent        sent, context       not yet sent
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._ids: list[int] = []
        self._done = 0
        self._context = ""

    def feed(self, token: int) -> str:
        """Return the new text, empty while a character is incomplete."""
        self._ids.append(token)
        text = self._decoder.decode(self._ids)
        if text.endswith("�") and len(self._ids) - self._done < MAX_HELD_TOKENS:
            return ""
        return self._advance(text)

    def close(self) -> str:
        """Return the rest: replacement characters for bytes that never formed a whole character."""
        return self._advance(self._decoder.decode(self._ids)) if self._done < len(self._ids) else ""

    def _advance(self, text: str) -> str:
        new = text[len(self._context) :]
        if not new and len(self._ids) > MAX_HELD_TOKENS:  # an endless run of tokens without text
            del self._ids[self._done :]
        if new:
            self._ids = self._ids[self._done :]
            self._context = self._decoder.decode(self._ids)
        self._done = len(self._ids)
        return new
