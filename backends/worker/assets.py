"""The files that a gateway needs to render prompts for a model, cut into frames."""

from collections.abc import Iterator
from pathlib import Path

from backends.wire import ASSET_CHUNK_BYTES, Asset

NAMES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json", "generation_config.json")


def read_assets(directory: Path) -> dict[str, bytes]:
    """Return the asset files that the model's directory has."""
    return {name: (directory / name).read_bytes() for name in NAMES if (directory / name).is_file()}


def chunks(assets: dict[str, bytes]) -> Iterator[Asset]:
    for name, data in assets.items():
        for start in range(0, max(1, len(data)), ASSET_CHUNK_BYTES):
            stop = start + ASSET_CHUNK_BYTES
            yield Asset(name, data[start:stop], stop >= len(data))
