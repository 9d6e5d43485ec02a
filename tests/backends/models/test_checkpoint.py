"""Directories that are served are read right; those that are not are refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from backends.config import Settings, resolve_dtype, resolve_pages
from backends.models.checkpoint import Checkpoint
from backends.models.model_config import read_model_config
from backends.quant.weight import UnsupportedCheckpoint
from backends.worker.address import Address, parse_address
from tests.backends.conftest import MakeCheckpoint


def edit(directory: Path, **changed: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1.0}}, "rope type longrope"),
        ({"rope_parameters": None, "rope_scaling": {"type": "su"}}, "rope type su"),
        ({"quantization_config": {"quant_method": "hqq"}}, "quantization hqq"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 3}}, "gptq of 3 bits"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemv"}}, "awq version gemv"),
        ({"quantization_config": {"quant_method": "fp8"}}, "without weight_block_size"),
        (
            {
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "format": "int-quantized",
                    "config_groups": {
                        "group_0": {"weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"}}
                    },
                }
            },
            "group_0.weights.num_bits is 4",
        ),
    ],
)
def test_unsupported_checkpoint_is_refused_by_name(
    make_checkpoint: MakeCheckpoint, changed: dict[str, Any], named: str
) -> None:
    directory = make_checkpoint()
    edit(directory, **changed)
    with pytest.raises(UnsupportedCheckpoint, match=named):
        read_model_config(directory)


def test_missing_files_and_tensors_are_named(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=r"no config\.json"):
        read_model_config(tmp_path)
    directory = make_checkpoint()
    weights = load_file(directory / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, directory / "model.safetensors")
    with pytest.raises(UnsupportedCheckpoint, match=r"lacks 1 tensors, the first is model\.layers\.1\.mlp\.up_proj\.weight"):
        Checkpoint(directory)
    (directory / "model.safetensors").unlink()
    with pytest.raises(UnsupportedCheckpoint, match=r"neither model\.safetensors nor"):
        Checkpoint(directory)


def test_old_and_new_rope_fields_give_the_same_config(make_checkpoint: MakeCheckpoint) -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    new, old = make_checkpoint(), make_checkpoint()
    edit(new, rope_parameters={"rope_type": "llama3", "rope_theta": 500.0, **scaling})
    edit(old, rope_parameters=None, rope_theta=500.0, rope_scaling={"type": "llama3", **scaling})
    assert read_model_config(new) == read_model_config(old)


def test_end_tokens_come_from_both_configs(make_checkpoint: MakeCheckpoint) -> None:
    directory = make_checkpoint()
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4]}))
    assert read_model_config(directory).eos_tokens == (3, 4, 0)


def test_the_fingerprint_follows_the_weights_and_the_config(make_checkpoint: MakeCheckpoint) -> None:
    first, same, other = make_checkpoint(), make_checkpoint(), make_checkpoint(seed=1)
    assert Checkpoint(first).fingerprint() == Checkpoint(same).fingerprint() != Checkpoint(other).fingerprint()
    edit(same, rms_norm_eps=1e-3)
    assert Checkpoint(first).fingerprint() != Checkpoint(same).fingerprint()


def test_int8_weights_with_scales_are_dequantized(make_checkpoint: MakeCheckpoint) -> None:
    directory = make_checkpoint()
    weights = load_file(directory / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    plain, scale = weights[name], (weights[name].abs().amax(1, keepdim=True) / 127).bfloat16()
    weights[name], weights[f"{name}_scale"] = (plain / scale.float()).round().clamp(-127, 127).to(torch.int8), scale
    save_file(weights, directory / "model.safetensors")
    found = Checkpoint(directory).weight(name.removesuffix(".weight")).dense(torch.float32)
    assert (found - plain).abs().max() <= scale.float().max() * 0.51
    del weights[f"{name}_scale"]
    save_file(weights, directory / "model.safetensors")
    with pytest.raises(UnsupportedCheckpoint, match="is int8 and has no weight_scale"):
        Checkpoint(directory).weight(name.removesuffix(".weight"))


def test_auto_settings_are_resolved_with_a_reason() -> None:
    assert resolve_dtype("auto", device="cpu").value == "float32"
    assert resolve_dtype("auto", device="cuda:0").value == "bfloat16"
    assert resolve_dtype("bfloat16", device="cpu") == ("bfloat16", "asked for")
    shape = {"page_size": 16, "max_context": 100, "max_sequences": 4, "bytes_per_token": 10}
    assert resolve_pages(None, budget_bytes=10**9, **shape).value == 28
    assert resolve_pages(None, budget_bytes=1600, **shape).value == 10
    assert resolve_pages(None, budget_bytes=0, **shape).value == 7
    assert resolve_pages(100, budget_bytes=0, **shape).value == 6


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"page_size": 0}, {"kv_tokens": 3}, {"prefill_tokens": -1}])
def test_a_bad_setting_names_itself(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings(model=Path("m"), name="m", listen="unix:///x", **wrong)  # type: ignore[arg-type]


def test_addresses_are_checked() -> None:
    assert parse_address("unix:///tmp/w", token=None) == Address(path="/tmp/w")
    assert parse_address("tcp://127.0.0.1:80", token=None) == Address(host="127.0.0.1", port=80)
    assert parse_address("tcp://0.0.0.0:80", token="secret") == Address(host="0.0.0.0", port=80)
    for wrong in ("tcp://0.0.0.0:80", "http://localhost:1", "tcp://localhost", "unix://relative/path"):
        with pytest.raises(ValueError, match=r"listen|reached"):
            parse_address(wrong, token=None)
