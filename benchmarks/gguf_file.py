"""Writes a Llama directory (bfloat16 safetensors) as GGUF in F16: `python gguf_file.py DIRECTORY FILE`.

The peer's interpreter runs it, which has `gguf` and numpy but not this package. The file has no tokenizer: benchmarks send
token ids.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write(directory: Path, file: Path) -> None:
    shape: dict[str, Any] = json.loads((directory / "config.json").read_text())
    heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(shape["max_position_embeddings"])
    writer.add_embedding_length(shape["hidden_size"])
    writer.add_block_count(shape["num_hidden_layers"])
    writer.add_feed_forward_length(shape["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(shape["rms_norm_eps"])
    writer.add_rope_freq_base(shape["rope_theta"])
    writer.add_vocab_size(shape["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    for name, weight in tensors(directory / "model.safetensors"):
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight = neighbours(weight, heads if "q_proj" in name else kv_heads)
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, weight if weight.ndim == 1 else weight.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(file: Path) -> Iterator[tuple[str, Array]]:
    """Yield names and float32 values. numpy has no bfloat16: its 16 bits are the upper half of a float32's."""
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    for name, described in json.loads(data[8:start]).items():
        if name == "__metadata__":
            continue
        assert described["dtype"] == "BF16", f"{name} is {described['dtype']}"
        begin, end = described["data_offsets"]
        halves = np.frombuffer(data[start + begin : start + end], dtype=np.uint16)
        yield name, (halves.astype(np.uint32) << 16).view(np.float32).reshape(described["shape"])


def neighbours(weight: Array, heads: int) -> Array:
    """Permute for llama.cpp, which rotates neighbouring pairs of a head. Hugging Face pairs element j with j + half of the
    head."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
