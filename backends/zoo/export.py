"""Writes a trained net as a Hugging Face Llama directory: `python -m backends.zoo.export nano --checkpoint DIR --out DIR ...`.

`--int8` stores the blocks' matrices in compressed-tensors' int-quantized layout: int8 weights, one scale a row.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from backends.zoo.net import SHAPES, Shape


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=SHAPES)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--int8", action="store_true")
    args = parser.parse_args()
    state = torch.load(args.checkpoint / "state.pt", weights_only=True)["net"]
    args.out.mkdir(parents=True, exist_ok=True)
    weights = {f"model.{name}": weight.bfloat16().contiguous() for name, weight in state.items()}
    if args.int8:
        weights = _int8(weights)
    save_file(weights, args.out / "model.safetensors", metadata={"format": "pt"})
    (args.out / "config.json").write_text(json.dumps(_config(SHAPES[args.model], int8=args.int8), indent=2) + "\n")
    (args.out / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}) + "\n"
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(args.tokenizer / name, args.out / name)


def _config(shape: Shape, *, int8: bool) -> dict[str, object]:
    config: dict[str, object] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.width,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_width,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.positions,
        "rms_norm_eps": shape.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "dtype": "bfloat16",
    }
    if int8:
        weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
        config["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "quantization_status": "compressed",
            "ignore": ["lm_head"],
            "config_groups": {"group_0": {"format": "int-quantized", "targets": ["Linear"], "weights": weights}},
        }
    return config


def _int8(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Symmetric, one scale an output row: weight ~= int8 * scale."""
    stored: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if not name.endswith("proj.weight"):
            stored[name] = weight
            continue
        scale = (weight.float().abs().amax(1, keepdim=True) / 127).bfloat16()
        stored[name] = (weight.float() / scale.float()).round().clamp(-127, 127).to(torch.int8)
        stored[f"{name}_scale"] = scale
    return stored


if __name__ == "__main__":
    main()
