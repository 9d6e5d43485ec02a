"""The map of the system: every message between a gateway and a worker, and nothing else. Imports no torch.

One WebSocket per worker; a frame is a msgpack array of the messages that were at hand, ordered both ways. Every `Submit` gets
exactly one `Finished`.
A gateway keeps to the credits of the last `Load`; a worker refuses what would exceed them.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Literal

import msgspec

MAX_FRAME_BYTES = 4 * 1024 * 1024
"""aiohttp's own default. Large things (assets, cache resync) are cut into chunks below it."""
ASSET_CHUNK_BYTES = 1024 * 1024
MAX_PACKED_BYTES = 256 * 1024
"""Messages share a frame up to this; a larger one has a frame of its own. Fewer than 65,536 of even the smallest fit."""
CACHE_CHUNK_PAGES = 16_384
PAGE_HASH_BYTES = 16
PROTOCOL = 3
SHARED_SALT = "\0shared"
"""No tenant's: a name has no zero in it."""

FinishReason = Literal["stop", "length", "abort", "refused", "error"]


class CallForm(msgspec.Struct, frozen=True, array_like=True):
    """How one tool's call is written: `begin`, arguments that satisfy `schema` (JSON text), `end`."""

    begin: str
    schema: str
    end: str
    style: Literal["json", "qwen_xml"] = "json"


class Grammar(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an answer must look like. `text` is a JSON Schema or a regular expression; `calls` are the only tool calls that
    may be written: from `trigger` on inside free text, or, if `required`, one after the other and nothing else; with
    a `text` beside them the answer is either such calls or of that schema.

    `thinks` allows reasoning up to `</think>` in front: `opens` when the model writes `<think>`, `inside` when its prompt
    does. `param` is the request's field that asked for it: errors name it.

    Near its limit an answer in JSON is led to its end. It then ends by `length`, or by `stop` if it was told to `fit`.
    """

    kind: Literal["json", "schema", "regex", "calls"]
    param: str
    text: str = ""
    calls: tuple[CallForm, ...] = ()
    trigger: str = ""
    prefix: str = ""
    separator: str = ""
    suffix: str = ""
    required: bool = False
    parallel: bool = True
    thinks: Literal["no", "opens", "inside"] = "no"
    fit: bool = False


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to choose tokens. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 are off; `top_logprobs` None sends none.

    Penalties are subtracted from the logits of tokens of the output, `logit_bias` (token id, bias) is added.
    """

    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    ignore_eos: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    grammar: Grammar | None = None
    confidence: bool = False
    """Whether pieces tell how likely their tokens were."""


# Down: gateway to worker.


class Submit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="submit"):
    """Run one sequence. `prompt` is uint32 little-endian token ids; lower `priority` runs first.

    `cache_salt` names who may share the pages: prompts with different salts share none, but for those that lie whole within
    the first `shared_tokens` tokens. `traceparent` is the W3C context of the span that the work belongs under.
    """

    request: int
    prompt: bytes
    sampling: Sampling
    priority: int = 0
    cache_salt: str = ""
    chain: str = ""
    traceparent: str = ""
    shared_tokens: int = 0


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    request: int


class SetRetention(msgspec.Struct, frozen=True, tag="set_retention"):
    """Soft retention: pages of a chain with a lower score are evicted first; 0 releases them at once."""

    chain: str
    score: float


Down = Submit | Abort | SetRetention


# Up: worker to gateway.


class Asset(msgspec.Struct, frozen=True, tag="asset"):
    """A chunk of a file that the gateway needs for this model (`tokenizer.json`, `chat_template.jinja`), before `Hello`."""

    name: str
    data: bytes
    last: bool


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag="hello"):
    """The first message after the assets. `fingerprint` names weights and quantization: page names start from it.
    `gpu` is the UUID of the one it runs on, empty for none.
    """

    protocol: int
    model: str
    fingerprint: str
    device: str
    max_context: int
    page_size: int
    num_pages: int
    max_sequences: int
    eos_tokens: tuple[int, ...]
    kernels: dict[str, str]
    grammars: bool = False
    """Whether it takes `Sampling.grammar`."""
    gpu: str = ""


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True, gc=False):
    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


class Piece(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one sequence gained in one step: whole characters only, held back while they may begin a stop string.

    `confidence` is the least probability, of the model's own distribution, among its tokens; 1 where nobody asked.
    """

    request: int
    text: str
    num_tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()
    confidence: float = 1.0


class Tokens(msgspec.Struct, frozen=True, tag="tokens"):
    """One frame an engine step, for all sequences that gained text in it."""

    pieces: tuple[Piece, ...]


class Finished(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="finished"):
    """The end of a request, whatever the end. Times in seconds on the worker's clock; `device_s` is its share of step time."""

    request: int
    reason: FinishReason
    error: str = ""
    error_code: str = ""
    error_param: str = ""
    stop_text: str = ""
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    device_s: float = 0.0
    prefill_device_s: float = 0.0
    num_steps: int = 0
    mean_batch: float = 0.0


class Cache(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="cache"):
    """Pages that became resident or stopped being so: names of PAGE_NAME_BYTES each, joined. `sequence` counts by one.

    The same of the host tier, from which pages are reloaded. `reset` is true on the first chunk of a resync, which lists
    everything resident.
    """

    sequence: int
    stored: bytes = b""
    removed: bytes = b""
    reset: bool = False
    host_stored: bytes = b""
    host_removed: bytes = b""


class Load(msgspec.Struct, frozen=True, kw_only=True, tag="load"):
    """State after a step, and the credits it grants: sequences and uncached prompt tokens that may still be submitted.

    `busy_s` + `idle_s` is the wall time since the worker was ready; `attributed_s` is what all finished and running
    sequences were charged of `busy_s`. `step_cost` are the fitted coefficients (a, b, c, d) of the step model.
    """

    running: int
    waiting: int
    free_pages: int
    cached_pages: int
    num_pages: int
    credit_sequences: int
    credit_tokens: int
    busy_s: float
    idle_s: float
    attributed_s: float
    step_cost: tuple[float, float, float, float]
    reload_s_per_token: float = 0.0


Up = Asset | Hello | Tokens | Finished | Cache | Load

_down_decoder = msgspec.msgpack.Decoder(list[Down])
_up_decoder = msgspec.msgpack.Decoder(list[Up])
_encoder = msgspec.msgpack.Encoder()


def encode(message: Down | Up) -> bytes:
    """A frame of its own."""
    return _encoder.encode((message,))


def frames(messages: Iterable[Down | Up]) -> Iterator[bytes]:
    """All of them in order, in as few frames as hold them."""
    packed: list[bytes] = []
    size = 0
    for encoded in map(_encoder.encode, messages):
        if packed and size + len(encoded) > MAX_PACKED_BYTES:
            yield _frame(packed)
            packed, size = [], 0
        packed.append(encoded)
        size += len(encoded)
    if packed:
        yield _frame(packed)


def _frame(encoded: Sequence[bytes]) -> bytes:
    """The head of a msgpack array, and its elements."""
    return struct.pack(">BH", 0xDC, len(encoded)) + b"".join(encoded)


def decode_down(frame: bytes) -> list[Down]:
    """Raises msgspec.ValidationError or DecodeError on a frame that holds something else than such messages."""
    messages: list[Down] = _down_decoder.decode(frame)
    return messages


def decode_up(frame: bytes) -> list[Up]:
    """Raises msgspec.ValidationError or DecodeError on a frame that holds something else than such messages."""
    messages: list[Up] = _up_decoder.decode(frame)
    return messages


def page_key(fingerprint: str, cache_salt: str) -> bytes:
    """Under which pages are named. BLAKE2b over the model's fingerprint and the salt."""
    return blake2b(f"{fingerprint}\0{cache_salt}".encode(), digest_size=32).digest()


def page_hashes(prompt: bytes, *, page_size: int, fingerprint: str, cache_salt: str, shared_tokens: int = 0) -> list[bytes]:
    """Names of the full pages of a prompt (uint32 little-endian ids), each chained to the page before it.

    Keyed with the model's fingerprint and the salt, so that equal names mean equal KV and nobody can guess them across salts.
    The salt enters behind the pages that are whole within `shared_tokens`.
    """
    return further_hashes(
        prompt, page_size=page_size, fingerprint=fingerprint, cache_salt=cache_salt, shared_tokens=shared_tokens
    )


def further_hashes(
    prompt: bytes | bytearray,
    *,
    page_size: int,
    fingerprint: str,
    cache_salt: str,
    shared_tokens: int = 0,
    num_known: int = 0,
    parent: bytes = b"",
) -> list[bytes]:
    """The names of `page_hashes` behind the first `num_known`, the last of which is `parent`."""
    width = page_size * 4
    end = len(prompt) - len(prompt) % width
    shared_end = min(end, shared_tokens // page_size * width)
    start = num_known * width
    page_hashes: list[bytes] = []
    for salt, stop in ((SHARED_SALT, shared_end), (cache_salt, end)):
        if start >= stop:
            continue
        key = page_key(fingerprint, salt)
        for at in range(start, stop, width):
            parent = blake2b(parent + prompt[at : at + width], digest_size=PAGE_HASH_BYTES, key=key).digest()
            page_hashes.append(parent)
        start = stop
    return page_hashes


def split_hashes(joined: bytes) -> Sequence[bytes]:
    return [joined[i : i + PAGE_HASH_BYTES] for i in range(0, len(joined), PAGE_HASH_BYTES)]
