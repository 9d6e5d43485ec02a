"""Reads a Hugging Face Llama directory: `config.json` and safetensors. What it cannot serve exactly, it refuses by name."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from safetensors import safe_open
from torch import Tensor

from backends.rope import Rope

HASHED_BYTES = 1 << 20
"""The fingerprint reads whole files up to 256 of these, and of larger ones this much at each of 256 places."""


class UnsupportedCheckpoint(ValueError):
    """What is missing or not understood, all problems at once."""


class LlamaShape(msgspec.Struct, frozen=True, kw_only=True):
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
    tied: bool
    eos_tokens: tuple[int, ...]


class Weight(NamedTuple):
    """A matrix as stored: `values` (out, in); int8 values carry one `scale` a row (out, 1)."""

    values: Tensor
    scale: Tensor | None = None
    bias: Tensor | None = None

    def dense(self, dtype: torch.dtype) -> Tensor:
        if self.scale is None:
            return self.values.to(dtype)
        return (self.values.float() * self.scale.float()).to(dtype)

    def rows(self, reorder: Callable[[Tensor], Tensor]) -> "Weight":
        """The same done to the rows of all parts."""
        scale, bias = self.scale, self.bias
        return Weight(reorder(self.values), None if scale is None else reorder(scale), None if bias is None else reorder(bias))


def stack(weights: Sequence[Weight]) -> Weight:
    """One matrix that computes several: their rows one below the other."""
    scales = [weight.scale for weight in weights if weight.scale is not None]
    biases = [weight.bias for weight in weights if weight.bias is not None]
    values = torch.cat([weight.values for weight in weights])
    return Weight(values, torch.cat(scales) if scales else None, torch.cat(biases) if biases else None)


class Checkpoint:
    """The tensors of a directory, read when asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.shape = read_shape(directory)
        self._files = _tensor_files(directory)
        missing = [name for name in self._expected() if name not in self._files]
        if missing:
            raise UnsupportedCheckpoint(f"{directory} lacks {len(missing)} tensors, the first is {missing[0]}")

    def tensor(self, name: str) -> Tensor:
        with safe_open(self._files[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    def weight(self, module: str) -> Weight:
        values = self.tensor(f"{module}.weight")
        scale = self._maybe(f"{module}.weight_scale")
        if values.dtype == torch.int8 and scale is None:
            raise UnsupportedCheckpoint(f"{module}.weight is int8 and has no weight_scale")
        if scale is not None and scale.numel() != values.shape[0]:
            raise UnsupportedCheckpoint(f"{module}.weight_scale has {scale.numel()} values for {values.shape[0]} rows")
        return Weight(values, None if scale is None else scale.view(-1, 1), self._maybe(f"{module}.bias"))

    def fingerprint(self) -> str:
        """Names the weights: of the config and of the files' bytes (sampled when large)."""
        digest = hashlib.blake2b((self.directory / "config.json").read_bytes(), digest_size=16)
        for path in sorted(set(self._files.values())):
            size = path.stat().st_size
            stride = max(HASHED_BYTES, size // 256)
            with path.open("rb") as file:
                for start in range(0, size, stride):
                    file.seek(start)
                    digest.update(file.read(HASHED_BYTES))
            digest.update(size.to_bytes(8, "little"))
        return digest.hexdigest()

    def _maybe(self, name: str) -> Tensor | None:
        return self.tensor(name) if name in self._files else None

    def _expected(self) -> list[str]:
        attention = [f"self_attn.{name}_proj" for name in "qkvo"]
        parts = [*attention, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"]
        layers = [f"model.layers.{i}.{part}.weight" for i in range(self.shape.num_layers) for part in parts]
        ends = ["model.embed_tokens.weight", "model.norm.weight"] + ([] if self.shape.tied else ["lm_head.weight"])
        return ends + layers


def read_shape(directory: Path) -> LlamaShape:
    """Raises UnsupportedCheckpoint naming every field that this engine does not serve."""
    path = directory / "config.json"
    if not path.is_file():
        raise UnsupportedCheckpoint(f"{directory} has no config.json")
    config: dict[str, Any] = json.loads(path.read_text())
    problems = [*_problems(config), *_quantization_problems(config.get("quantization_config"))]
    rope, rope_problems = _rope(config)
    if problems or rope_problems:
        raise UnsupportedCheckpoint(f"{directory}: " + "; ".join([*problems, *rope_problems]))
    heads = config["num_attention_heads"]
    return LlamaShape(
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
        tied=config.get("tie_word_embeddings", False),
        eos_tokens=_eos_tokens(directory, config),
    )


def _problems(config: Mapping[str, Any]) -> list[str]:
    problems = []
    architectures = config.get("architectures") or ["LlamaForCausalLM"]
    if config.get("model_type") != "llama" or architectures != ["LlamaForCausalLM"]:
        problems.append(f"architecture {config.get('model_type')} {architectures} is not served, only LlamaForCausalLM is")
    if config.get("hidden_act", "silu") != "silu":
        problems.append(f"hidden_act {config['hidden_act']} is not served, only silu is")
    needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    problems += [f"config.json lacks {name}" for name in needed if name not in config]
    return problems


def _quantization_problems(quantization: Mapping[str, Any] | None) -> list[str]:
    if quantization is None:
        return []
    if quantization.get("quant_method") != "compressed-tensors" or quantization.get("format") != "int-quantized":
        found = f"{quantization.get('quant_method')} {quantization.get('format', '')}".strip()
        return [f"quantization {found} is not served, only compressed-tensors int-quantized is"]
    problems = []
    for name, group in quantization.get("config_groups", {}).items():
        weights = group.get("weights") or {}
        served = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
        problems += [
            f"{name}.weights.{k} is {weights.get(k)}, only {v} is served" for k, v in served.items() if weights.get(k) != v
        ]
    return problems


def _rope(config: Mapping[str, Any]) -> tuple[Rope, list[str]]:
    """Both spellings: `rope_parameters`, and before it `rope_theta` with `rope_scaling`."""
    found = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    kind = found.get("rope_type", found.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        return Rope(), [f"rope type {kind} is not served, only default, linear and llama3 are"]
    if found.get("partial_rotary_factor", 1.0) != 1.0:
        return Rope(), [f"partial_rotary_factor {found['partial_rotary_factor']} is not served"]
    rope = Rope(
        kind=kind,
        theta=float(found.get("rope_theta", config.get("rope_theta", 10_000.0))),
        factor=float(found.get("factor", 1.0)),
        low_freq_factor=float(found.get("low_freq_factor", 1.0)),
        high_freq_factor=float(found.get("high_freq_factor", 4.0)),
        original_positions=int(found.get("original_max_position_embeddings", config.get("max_position_embeddings", 8192))),
    )
    return rope, []


def _eos_tokens(directory: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Of generation_config.json where there is one, and of config.json."""
    found: list[int] = []
    generation = directory / "generation_config.json"
    sources = [json.loads(generation.read_text())] if generation.is_file() else []
    for source in [*sources, config]:
        value = source.get("eos_token_id")
        found += value if isinstance(value, list) else [] if value is None else [value]
    return tuple(dict.fromkeys(found))


def _tensor_files(directory: Path) -> dict[str, Path]:
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        placed: dict[str, str] = json.loads(index.read_text())["weight_map"]
        absent = sorted({file for file in placed.values() if not (directory / file).is_file()})
        if absent:
            raise UnsupportedCheckpoint(f"{directory} lacks {', '.join(absent)}, named by {index.name}")
        return {name: directory / file for name, file in placed.items()}
    single = directory / "model.safetensors"
    if not single.is_file():
        raise UnsupportedCheckpoint(f"{directory} has neither model.safetensors nor model.safetensors.index.json")
    with safe_open(single, framework="pt") as file:
        return dict.fromkeys(file.keys(), single)
