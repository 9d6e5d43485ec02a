"""What the native path reads of a `config.json`: Llama, Mistral, Qwen2, Qwen3. What it cannot serve exactly, it names."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from backends.models.rope import Rope, read_rope
from backends.quant.readers import reader_for
from backends.quant.weight import UnsupportedCheckpoint

NATIVE = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")

SIZES = {
    "hidden_size": 2**20, "intermediate_size": 2**22, "num_hidden_layers": 2**12, "num_attention_heads": 2**12,
    "num_key_value_heads": 2**12, "head_dim": 2**14, "vocab_size": 2**24, "max_position_embeddings": 2**31,
}  # fmt: skip
"""Largest values, some ten times those of the largest public models. A larger one is an error or an attack on memory."""


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`windows` are tokens that each layer sees at most, itself included; 0 is all."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    rope: Rope
    windows: tuple[int, ...]
    qk_norm: bool
    tied: bool
    eos_tokens: tuple[int, ...]


def read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if not path.is_file():
        raise UnsupportedCheckpoint(f"{directory} has no config.json")
    try:
        config = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise UnsupportedCheckpoint(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UnsupportedCheckpoint(f"{path} must hold a JSON object")
    return config


def read_model_config(directory: Path) -> ModelConfig:
    """Raises UnsupportedCheckpoint naming every field that this path does not serve, or whose value is not possible."""
    config = read_config(directory)
    if problems := _impossible(config):
        raise UnsupportedCheckpoint(f"{directory}: " + "; ".join(problems))
    try:
        return _model_config(directory, config)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:  # valid JSON of another structure
        raise UnsupportedCheckpoint(f"{directory}: config.json cannot be read: {error!r}") from error


def _impossible(config: Mapping[str, Any]) -> list[str]:
    """Return a problem for each size that is no whole number, or that no model has."""
    sizes = {name: config[name] for name in SIZES if config.get(name) is not None}
    return [
        f"{name} is {str(value)[:40]}: it must be a whole number from 1 to {SIZES[name]:,}"
        for name, value in sizes.items()
        if type(value) is not int or not 1 <= value <= SIZES[name]
    ]


def _model_config(directory: Path, config: dict[str, Any]) -> ModelConfig:
    rope, rope_problems = read_rope(config)
    problems = [*native_problems(config), *reader_for(config)[1], *rope_problems]
    if problems:
        raise UnsupportedCheckpoint(f"{directory}: " + "; ".join(problems))
    heads = config["num_attention_heads"]
    return ModelConfig(
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocab_size=config["vocab_size"],
        max_positions=config.get("max_position_embeddings", 2048),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        rope=rope,
        windows=_windows(config),
        qk_norm=config["model_type"] == "qwen3",
        tied=config.get("tie_word_embeddings", False),
        eos_tokens=read_eos_tokens(directory, config),
    )


def is_native(config: Mapping[str, Any]) -> bool:
    return not native_problems(config) and not read_rope(config)[1]


def native_problems(config: Mapping[str, Any]) -> list[str]:
    kind = config.get("model_type", "")
    architectures = config.get("architectures") or [NATIVE.get(kind)]
    problems = []
    if kind not in NATIVE or architectures != [NATIVE[kind]]:
        names = ", ".join(NATIVE.values())
        problems.append(f"architecture {kind} {architectures} is not served natively, only {names} are")
    if config.get("hidden_act", "silu") != "silu":
        problems.append(f"hidden_act {config['hidden_act']} is not served natively, only silu is")
    return problems + [f"config.json lacks {name}" for name in NEEDED if name not in config]


def _windows(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Qwen says whether and in which layers, Mistral means all."""
    layers, window = int(config["num_hidden_layers"]), int(config.get("sliding_window") or 0)
    kind = config["model_type"]
    if kind == "llama" or (kind != "mistral" and not config.get("use_sliding_window", False)):
        return (0,) * layers
    if types := config.get("layer_types"):
        return tuple(window if one == "sliding_attention" else 0 for one in types)
    first = 0 if kind == "mistral" else int(config.get("max_window_layers", layers))
    return tuple(window if i >= first else 0 for i in range(layers))


def read_eos_tokens(directory: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Of generation_config.json where there is one, and of config.json."""
    found: list[int] = []
    generation = directory / "generation_config.json"
    sources = [json.loads(generation.read_text())] if generation.is_file() else []
    for source in [*sources, config]:
        value = source.get("eos_token_id")
        found += value if isinstance(value, list) else [] if value is None else [value]
    return tuple(dict.fromkeys(found))
