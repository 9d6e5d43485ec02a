"""The tensors of a Hugging Face directory, one file or many, read when asked for and never all at once."""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from backends.models.model_config import ModelConfig, read_config, read_model_config
from backends.quant.compressed import Compressed
from backends.quant.readers import reader_for
from backends.quant.weight import UnsupportedCheckpoint, Weight

HASHED_BYTES = 1 << 20
"""The fingerprint reads whole files up to 256 of these, and of larger ones this much at each of 256 places."""
MATRICES = ("weight", "qweight", "weight_packed")
"""What a module's matrix may be called, by the layout it is in."""


class Files:
    """Tensors by name. Each file is mapped once, when its first tensor is read."""

    def __init__(self, directory: Path) -> None:
        self.placed = _tensor_files(directory)
        self._open: dict[Path, Any] = {}

    def tensor(self, name: str) -> Tensor:
        if name not in self.placed:
            raise UnsupportedCheckpoint(f"the checkpoint has no tensor {name}")
        path = self.placed[name]
        if path not in self._open:
            self._open[path] = safe_open(path, framework="pt")
        tensor: Tensor = self._open[path].get_tensor(name)
        return tensor

    def maybe(self, name: str) -> Tensor | None:
        return self.tensor(name) if name in self.placed else None

    def close(self) -> None:
        self._open.clear()


class Checkpoint:
    """A directory that the native path serves: raises UnsupportedCheckpoint where it is not one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.model_config: ModelConfig = read_model_config(directory)
        self.files = Files(directory)
        self._reader, _ = reader_for(read_config(directory))
        self._plain = Compressed({})
        missing = [name for name in self._expected() if not self._has(name)]
        if missing:
            raise UnsupportedCheckpoint(f"{directory} lacks {len(missing)} tensors, the first is {missing[0]}.weight")

    def tensor(self, name: str) -> Tensor:
        return self.files.tensor(name)

    def weight(self, module: str) -> Weight:
        """A matrix in whatever layout it is stored."""
        found = self._reader.read(self.files, module) or self._plain.read(self.files, module)
        if found is None:
            raise UnsupportedCheckpoint(f"{module} is not stored as its quantization_config says")
        return found

    def fingerprint(self) -> str:
        return fingerprint(self.directory)

    def _has(self, module: str) -> bool:
        return any(f"{module}.{matrix}" in self.files.placed for matrix in MATRICES)

    def _expected(self) -> list[str]:
        attention = [f"self_attn.{name}_proj" for name in "qkvo"]
        parts = [*attention, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"]
        if self.model_config.qk_norm:
            parts += ["self_attn.q_norm", "self_attn.k_norm"]
        layers = [f"model.layers.{i}.{part}" for i in range(self.model_config.num_layers) for part in parts]
        ends = ["model.embed_tokens", "model.norm"] + ([] if self.model_config.tied else ["lm_head"])
        return ends + layers


def fingerprint(directory: Path) -> str:
    """Names the weights: of the config and of the files' bytes (sampled when large)."""
    digest = hashlib.blake2b((directory / "config.json").read_bytes(), digest_size=16)
    for path in sorted(set(_tensor_files(directory).values())):
        size = path.stat().st_size
        stride = max(HASHED_BYTES, size // 256)
        with path.open("rb") as file:
            for start in range(0, size, stride):
                file.seek(start)
                digest.update(file.read(HASHED_BYTES))
        digest.update(size.to_bytes(8, "little"))
    return digest.hexdigest()


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
