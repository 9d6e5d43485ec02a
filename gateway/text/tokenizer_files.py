"""Parses a Hugging Face tokenizer and its chat template from their files' contents."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer

FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
"""Files of a tokenizer. Only the first is required; a template must be in the second or the third."""


class TokenizerFiles(NamedTuple):
    """Contents of the files. `templates` and `special_tokens` are by name (`default`, `bos_token`). Equal files have equal
    `fingerprint`."""

    tokenizer: Tokenizer
    templates: dict[str, str]
    special_tokens: dict[str, str]
    fingerprint: str


def read_directory(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in FILES if (path / name).is_file()}


def parse_files(files: Mapping[str, bytes]) -> TokenizerFiles:
    """Parse the files. Raises ValueError that names the missing or invalid file."""
    if "tokenizer.json" not in files:
        raise ValueError("tokenizer.json is missing: only tokenizers of the `tokenizers` library are supported")
    config = _object(files, "tokenizer_config.json")
    templates = _templates(files, config)
    special_tokens = _special_tokens({**_object(files, "special_tokens_map.json"), **config})
    added = config.get("added_tokens_decoder") or {}
    split = bool(config.get("split_special_tokens", False))
    tokenizer = _tokenizer(files["tokenizer.json"])
    _complete(tokenizer, added, special_tokens)
    tokenizer.encode_special_tokens = split
    settings = json.dumps([templates, special_tokens, added, split], sort_keys=True).encode()
    digest = hashlib.blake2b(hashlib.blake2b(files["tokenizer.json"]).digest() + settings, digest_size=16)
    return TokenizerFiles(tokenizer, templates, special_tokens, digest.hexdigest())


def _tokenizer(data: bytes) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"tokenizer.json cannot be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        value = json.loads(files.get(name, b"{}"))
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} must hold a JSON object")
    return value


def _templates(files: Mapping[str, bytes], config: Mapping[str, Any]) -> dict[str, str]:
    if "chat_template.jinja" in files:
        return {"default": files["chat_template.jinja"].decode()}
    templates = config.get("chat_template")
    if isinstance(templates, str):
        return {"default": templates}
    if isinstance(templates, list):
        return {entry["name"]: entry["template"] for entry in templates}
    raise ValueError("no chat template: add chat_template.jinja, or `chat_template` in tokenizer_config.json")


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the template variables with special tokens, such as `bos_token`, as text."""
    extra = config.get("extra_special_tokens")
    named = {**config, **extra} if isinstance(extra, dict) else config
    return {name: text for name, value in named.items() if name.endswith("_token") and (text := _content(value))}


def _content(token: Any) -> str | None:
    value = token.get("content") if isinstance(token, dict) else token
    return value if isinstance(value, str) else None


def _complete(tokenizer: Tokenizer, added: Mapping[str, Any], special_tokens: Mapping[str, str]) -> None:
    """Add the tokens that only the configuration has, in the order of transformers."""
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for token in _missing(added, special_tokens):
        if token.content not in known:
            known.add(token.content)
            tokenizer.add_tokens([token])


def _missing(added: Mapping[str, Any], special_tokens: Mapping[str, str]) -> Iterator[AddedToken]:
    for _, entry in sorted(added.items(), key=lambda item: int(item[0])):
        yield AddedToken(**{key: value for key, value in entry.items() if not key.startswith("__")})
    for content in special_tokens.values():
        yield AddedToken(content, special=True)
