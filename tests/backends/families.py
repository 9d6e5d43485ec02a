"""Tiny random checkpoints of many architectures, saved as transformers saves them, and what transformers says of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SMALL: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 1}
MLA = {
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 1,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
}
GEMMA = {
    "head_dim": 8,
    "num_hidden_layers": 3,
    "sliding_window": 9,
    "query_pre_attn_scalar": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 64}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-yarn": ("Llama", {"rope_parameters": YARN}),
    "llama-dynamic": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0}}),
    "qwen2": ("Qwen2", {}),
    "qwen2-window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1, "layer_types": None},
    ),
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {"sliding_window": 10}),
    "gemma3": ("Gemma3", GEMMA),
    "gemma2": ("Gemma2", {**GEMMA, "attn_logit_softcapping": 5.0}),
    "phi3": ("Phi3", {"sliding_window": None}),
    "qwen3-moe": ("Qwen3Moe", {**MOE, "head_dim": 8}),
    "deepseek-v3": ("DeepseekV3", MLA),
    "gpt-neox": ("GPTNeoX", {"rotary_pct": 0.5}),
    "olmo2": ("Olmo2", {}),
}
NATIVE = {"llama", "llama-yarn", "llama-dynamic", "qwen2", "qwen2-window", "qwen3", "mistral"}


def save(family: str, directory: Path, *, seed: int = 0, **saving: Any) -> Path:
    """Every parameter is random, norms and biases too, so that none of them can be lost unseen."""
    import transformers

    name, changed = FAMILIES[family]
    config_class = getattr(transformers, f"{name}TextConfig", None) or getattr(transformers, f"{name}Config")
    config = config_class(**{**SMALL, **changed})
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for name_, parameter in model.named_parameters():
            around = 1.0 if "norm" in name_ and name_.endswith("weight") and not name.startswith("Gemma") else 0.0
            parameter.copy_(around + torch.randn_like(parameter) * (0.2 if parameter.dim() > 1 else 0.3))
    model.save_pretrained(directory, **saving)
    return directory


def reference(directory: Path) -> Callable[[list[int]], Tensor]:
    """transformers' own logits of every position, in float32 and with its plain attention."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")

    @torch.inference_mode()
    def logits(ids: list[int]) -> Tensor:
        found: Tensor = model.eval()(torch.tensor([ids]), use_cache=False).logits[0]
        return found

    return logits
