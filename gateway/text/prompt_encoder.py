"""Encodes messages as token ids: once per tokenizer, incrementally per chain, and never for long on the event loop."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import NamedTuple

import msgspec

from gateway.errors import ContextTooLong
from gateway.request import Message, Request, Tool
from gateway.runs.cache_miss import PromptChange, around, part_at
from gateway.text.model_text import Encoded, ModelText
from gateway.text.page_hashes import PageHashes
from gateway.text.safe_splits import common_prefix

MAX_INLINE_CHARS = 8_000
"""Characters of new text that are tokenized on the event loop, about a millisecond. More is tokenized on a thread."""
MAX_INLINE_TOTAL_CHARS = 60_000
"""Characters of a conversation above which a thread is used even for little new text: rendering and page hashing process all of
it."""
SHRINKS = 4
"""Factor by which a tokenizer's normalization shortens a text, at most: composed accents, merged blanks."""
MAX_KEPT_CHARS = 64_000_000
MAX_KEPT_CHAINS = 20_000

_encode_json = msgspec.json.Encoder().encode


class Prompt(NamedTuple):
    """An encoded prompt. `data` is uint32 little-endian ids; `names` are the hashes of its full pages on its worker.

    Pages within the first `shared_tokens` have the same hash for all tenants that share.
    """

    data: bytes
    num_tokens: int
    page_hashes: Sequence[bytes]
    shared_tokens: int = 0
    change: PromptChange | None = None
    """Difference from the chain's previous prompt; None if that is unknown."""


class _CachedEncoding(NamedTuple):
    """The last prompt of a chain for one tokenizer, with page hashes by weights fingerprint, page size, salt and shared
    tokens."""

    encoded: Encoded
    data: bytes
    names: dict[tuple[str, int, str, int], PageHashes]
    shared_tokens: int

    def num_known(self, data: bytes, page_size: int) -> int:
        """Return the number of leading pages shared with `data`."""
        return common_prefix(self.data, data) // (4 * page_size)


class Target(NamedTuple):
    """The parameters of a worker that determine its prompt: tokenizer and page hashing."""

    worker: str
    text: ModelText
    fingerprint: str
    page_size: int
    max_context: int


def check_length(request: Request, targets: Sequence[Target]) -> None:
    """Raise ContextTooLong if a request is too long for every target, whatever its tokens are: tokenizing it would take
    minutes."""
    total = total_chars(request)
    min_tokens = [(total // (SHRINKS * target.text.longest_token), target) for target in targets]
    if min_tokens and all(tokens > target.max_context for tokens, target in min_tokens):
        tokens, target = max(min_tokens, key=lambda pair: pair[1].max_context)
        raise ContextTooLong(
            f"prompt has {total:,} characters, more than {tokens:,} tokens; the limit is"
            f" {target.max_context:,} including the answer: shorten it or route to a model with a longer context",
            param="messages",
        )


class PromptEncoder:
    """Encodes prompts and caches the last encoding of each chain and tokenizer, limited by chains and by characters.

    With `capture`, changes include the surrounding text.
    """

    def __init__(self, clock: Callable[[], datetime] = datetime.now, *, capture: bool = False) -> None:
        self._clock, self._capture = clock, capture
        self._kept: OrderedDict[tuple[str, str], _CachedEncoding] = OrderedDict()
        self._kept_chars = 0
        self._fingerprints = set[str]()
        """Fingerprints of the tokenizers used so far."""
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="tokenize")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def build(
        self, request: Request, targets: Sequence[Target], *, chain: str, salt: str, shares_system: bool = False
    ) -> dict[str, Prompt]:
        """Return the prompt by worker.

        With `shares_system` the salt enters the hash after the system prompt and tools. Raises BadRequest if a template refuses
        the messages.
        """
        texts = {target.text.fingerprint: target.text for target in targets}
        previous = {fingerprint: self._kept.get((chain, fingerprint)) for fingerprint in texts}
        if _is_short(request, previous):
            kept, prompts = self._encode(request, targets, texts, previous, salt, shares_system)
        else:
            loop = asyncio.get_running_loop()
            kept, prompts = await loop.run_in_executor(
                self._threads, self._encode, request, targets, texts, previous, salt, shares_system
            )
        for fingerprint, one in kept.items() if request.text is None else ():
            self._keep((chain, fingerprint), one)
        return prompts

    def _encode(
        self,
        request: Request,
        targets: Sequence[Target],
        texts: Mapping[str, ModelText],
        previous: Mapping[str, _CachedEncoding | None],
        salt: str,
        shares_system: bool,
    ) -> tuple[dict[str, _CachedEncoding], dict[str, Prompt]]:
        now = self._clock()
        kept: dict[str, _CachedEncoding] = {}
        for fingerprint, text in texts.items():
            before = previous[fingerprint]
            encoded = _encode(text, request, now, before.encoded if before else None)
            shared = _shared_tokens(text, encoded, request, now) if shares_system else 0
            kept[fingerprint] = _CachedEncoding(encoded, encoded.ids.tobytes(), {}, shared)
        changes = {
            fingerprint: self._change(request, before, kept[fingerprint])
            for fingerprint, before in previous.items()
            if before is not None and request.text is None
        }
        # Workers with equal parameters share one prompt, so that each further one costs almost nothing.
        prompts: dict[str, Prompt] = {}
        alike: dict[tuple[str, str, int], Prompt] = {}
        for worker, text, fingerprint, page_size, _ in targets:
            kind = (text.fingerprint, fingerprint, page_size)
            if (prompt := alike.get(kind)) is None:
                one, before = kept[text.fingerprint], previous[text.fingerprint]
                page_hashes = _names(one, before, fingerprint, page_size, salt)
                change = changes.get(text.fingerprint)
                prompt = alike[kind] = Prompt(one.data, len(one.data) // 4, page_hashes, one.shared_tokens, change)
            prompts[worker] = prompt
        return kept, prompts

    def _change(self, request: Request, before: _CachedEncoding, now: _CachedEncoding) -> PromptChange:
        previous, shared = len(before.data) // 4, common_prefix(before.data, now.data) // 4
        if shared == previous:
            return PromptChange(previous, shared)
        then, text = before.encoded.text, now.encoded.text
        at = common_prefix(then, text)
        part = part_at(text, at, request.messages, has_tools=bool(request.tools))
        shown = (around(then, at), around(text, at)) if self._capture else ("", "")
        return PromptChange(previous, shared, part, *shown)

    def forget(self, chains: Iterable[str]) -> None:
        """Drop the encodings of ended chains."""
        for key in [(chain, fingerprint) for chain in chains for fingerprint in self._fingerprints]:
            self._drop(key)

    def _drop(self, key: tuple[str, str]) -> None:
        if (old := self._kept.pop(key, None)) is not None:
            self._kept_chars -= len(old.encoded.text)

    def _keep(self, key: tuple[str, str], kept: _CachedEncoding) -> None:
        self._drop(key)
        self._fingerprints.add(key[1])
        self._kept[key] = kept
        self._kept_chars += len(kept.encoded.text)
        while self._kept and (self._kept_chars > MAX_KEPT_CHARS or len(self._kept) > MAX_KEPT_CHAINS):
            _, dropped = self._kept.popitem(last=False)
            self._kept_chars -= len(dropped.encoded.text)


def _names(one: _CachedEncoding, before: _CachedEncoding | None, fingerprint: str, page_size: int, salt: str) -> PageHashes:
    key = (fingerprint, page_size, salt, one.shared_tokens)
    if key not in one.names:
        named = before.names.get(key) if before else None
        one.names[key] = PageHashes.of(
            one.data,
            page_size=page_size,
            fingerprint=fingerprint,
            cache_salt=salt,
            shared_tokens=one.shared_tokens,
            before=named,
            num_known=before.num_known(one.data, page_size) if before and named is not None else 0,
        )
    return one.names[key]


def _encode(text: ModelText, request: Request, now: datetime, previous: Encoded | None) -> Encoded:
    if request.text is not None:
        return text.plain(request.text)
    effort = request.reasoning_effort
    return text.prompt(request.messages, request.tools, now=now, previous=previous, effort=effort)


def _shared_tokens(text: ModelText, encoded: Encoded, request: Request, now: datetime) -> int:
    if request.text is not None:
        return 0
    return text.num_system_tokens(encoded, request.messages, request.tools, now=now, effort=request.reasoning_effort)


def _is_short(request: Request, previous: Mapping[str, _CachedEncoding | None]) -> bool:
    total = total_chars(request)
    if total > MAX_INLINE_TOTAL_CHARS:
        return False
    known = min((len(kept.encoded.text) if kept else 0 for kept in previous.values()), default=0)
    return total - known <= MAX_INLINE_CHARS


def total_chars(request: Request) -> int:
    """Return the approximate number of characters of a request that the model receives."""
    return len(request.text or "") + sum(map(_num_chars, request.messages)) + sum(map(_num_tool_chars, request.tools))


def _num_chars(message: Message) -> int:
    return len(message.content) + sum(100 + len(call.name) + len(call.arguments) for call in message.tool_calls)


def _num_tool_chars(tool: Tool) -> int:
    return 100 + len(tool.description) + (len(_encode_json(tool.parameters)) if tool.parameters else 0)
