"""The real model: our forward pass against transformers and against straight torch, and the engine against one by one.

Batched and unbatched matrix products add in different orders, so logits are compared within a tolerance; greedy tokens in
float32 are compared exactly.
"""

import json
import random
from array import array
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from backends.config import LinearChoice
from backends.engine.engine import Engine
from backends.engine.request_limits import RequestLimits
from backends.models.checkpoint import Checkpoint
from backends.models.linear import LinearChooser
from backends.models.llama import Llama
from backends.models.paged_kv import PagedKV
from backends.models.tiles import TiledRows
from backends.runners.native_library import Library
from backends.runners.registry import cpu_runner
from backends.wire import Sampling, Submit
from tests.backends.conftest import MakeCheckpoint
from tests.backends.fakes import Ticks
from tests.backends.naive import Naive

ZOO = Path(__file__).parents[3] / "backends" / "zoo"
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
NEAR_TIE = 0.05


class CharacterDecoder:
    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(chr(0x4E00 + token) for token in ids)


def load(
    directory: Path, library: Library | None, *, dtype: torch.dtype = torch.float32, linear: LinearChoice = "float32"
) -> Llama:
    return Llama(Checkpoint(directory), LinearChooser(linear, dtype, "cpu", library), dtype=dtype, device="cpu")


def kv_for(model: Llama, *, num_pages: int, page_size: int, dtype: torch.dtype) -> PagedKV:
    model_config = model.model_config
    return PagedKV(
        layers=model_config.num_layers,
        num_pages=num_pages,
        page_size=page_size,
        kv_heads=model_config.num_kv_heads,
        head_dim=model_config.head_dim,
        dtype=dtype,
        device="cpu",
    )


def all_logits(model: Llama, library: Library | None, ids: list[int]) -> Tensor:
    """Over pages that lie in no order."""
    kv = kv_for(model, num_pages=len(ids), page_size=2, dtype=torch.float32)
    pages = random.Random(0).sample(range(len(ids)), -(-len(ids) // 2))
    return cpu_runner(model, kv, dtype=torch.float32, library=library).all_logits(ids, pages)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"tie_word_embeddings": False, "head_dim": 24},
        {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
        {"num_key_value_heads": 1, "rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}},
        {"rope_parameters": LLAMA3},
        {"max_shard_size": "40KB"},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float16},
    ],
    ids=lambda changed: "-".join(map(str, changed)) or "plain",
)
def test_transformers_gives_the_same_logits(
    library: Library | None, make_checkpoint: MakeCheckpoint, changed: dict[str, Any]
) -> None:
    transformers = pytest.importorskip("transformers")
    directory = make_checkpoint(**changed)
    if "attention_bias" in changed:
        _randomize_biases(directory)
    ids = random.Random(1).choices(range(320), k=90)
    reference = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.inference_mode():
        expected = reference(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(all_logits(load(directory, library), library, ids), expected, atol=2e-3, rtol=1e-4)


def _randomize_biases(directory: Path) -> None:
    """transformers starts biases at zero, which would hide a lost one."""
    weights = load_file(directory / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith("bias"):
            weights[name] = torch.randn_like(weight)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["pico", "nano"])
def test_transformers_gives_the_same_logits_for_a_shipped_model(library: Library | None, name: str) -> None:
    directory = ZOO / name
    if not (directory / "model.safetensors").is_file():
        pytest.skip(f"backends/zoo/{name} has no model.safetensors")
    transformers = pytest.importorskip("transformers")
    checkpoint = Checkpoint(directory)
    config = json.loads((directory / "config.json").read_text())
    config.pop("quantization_config", None)
    reference = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(config)).eval()
    weights = {
        name: checkpoint.weight(name.removesuffix(".weight")).dense(torch.float32)
        for name in reference.state_dict()
        if name != "lm_head.weight" or not checkpoint.model_config.tied
    }
    reference.load_state_dict(weights, strict=False)
    reference.tie_weights()
    ids = random.Random(2).choices(range(checkpoint.model_config.vocab_size), k=200)
    with torch.inference_mode():
        expected = reference(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(all_logits(load(directory, library), library, ids), expected, atol=2e-3, rtol=1e-4)


def test_an_int8_checkpoint_is_served_as_its_dequantized_twin(library: Library | None, make_checkpoint: MakeCheckpoint) -> None:
    """In the layout of `backends.zoo.export --int8`; W8A8 also rounds activations, so it is only close."""
    quantized, twin = make_checkpoint(), make_checkpoint()
    weights = load_file(quantized / "model.safetensors")
    dequantized = dict(weights)
    for name in [name for name in weights if name.endswith("proj.weight")]:
        scale = (weights[name].abs().amax(1, keepdim=True) / 127).bfloat16()
        weights[name] = (weights[name] / scale.float()).round().clamp(-127, 127).to(torch.int8)
        weights[f"{name}_scale"] = scale
        dequantized[name] = weights[name].float() * scale.float()
    save_file(weights, quantized / "model.safetensors")
    save_file(dequantized, twin / "model.safetensors")
    ids = random.Random(4).choices(range(320), k=40)
    expected = all_logits(load(twin, library), library, ids)
    torch.testing.assert_close(all_logits(load(quantized, library), library, ids), expected)
    if library is not None:
        close = all_logits(load(quantized, library, linear="w8a8"), library, ids)
        assert (close - expected).abs().mean() < 0.1 * expected.std()


def mixed_run(
    directory: Path, library: Library | None, *, dtype: torch.dtype, seed: int, requests: int
) -> list[tuple[list[int], int, list[int]]]:
    """Prompts, how many tokens they asked for, and what the engine said, in a random mix with prefix hits, chunks,
    preemption and aborts (which are left out)."""
    rng = random.Random(seed)
    model = load(directory, library, dtype=dtype, linear="float32" if dtype is torch.float32 else "bfloat16")
    of = RequestLimits(
        max_context=120,
        vocab_size=320,
        num_pages=26,
        page_size=4,
        max_sequences=4,
        prefill_tokens=rng.choice((5, 16, 48)),
        eos_tokens=frozenset({0}),
        kv_bytes=1,
        fingerprint="f",
    )
    kv = kv_for(model, num_pages=of.num_pages, page_size=of.page_size, dtype=dtype)
    engine = Engine(cpu_runner(model, kv, dtype=dtype, library=library), CharacterDecoder(), of, clock_ns=Ticks(), rng=rng)
    stems = [rng.choices(range(1, 320), k=40) for _ in range(2)]
    asked: dict[int, tuple[list[int], int]] = {}
    said: dict[int, list[int]] = {}
    aborted: set[int] = set()
    for request in range(requests):
        prompt = rng.choice(stems)[: rng.randrange(1, 40)] + rng.choices(range(1, 320), k=rng.randrange(3))
        asked[request] = prompt, rng.randrange(1, 14)
        sampling, ids = Sampling(max_tokens=asked[request][1]), array("I", prompt).tobytes()
        engine.submit("me", Submit(request=request, prompt=ids, sampling=sampling, priority=rng.randrange(2)))
        if rng.random() < 0.1:
            engine.abort("me", request)
            aborted.add(request)
        while len(engine.scheduler.waiting) > 2:
            engine.step()
            engine.check()
    while engine.has_work:
        engine.step()
        engine.check()
    output = engine.take_output()
    for piece in output.pieces["me"]:
        said.setdefault(piece.request, []).extend(ord(character) - 0x4E00 for character in piece.text)
    assert sorted(finished.request for _, finished in output.finished) == list(asked)
    assert engine.scheduler.num_preemptions and any(finished.num_cached_tokens for _, finished in output.finished)
    return [(*asked[request], said.get(request, [])) for request in asked if request not in aborted]


@pytest.mark.parametrize("seed", range(4))
def test_greedy_text_equals_the_naive_loop_exactly_in_float32(
    library: Library | None, make_checkpoint: MakeCheckpoint, seed: int
) -> None:
    directory = make_checkpoint(seed=seed)
    naive = Naive(directory, torch.float32)
    for prompt, count, said in mixed_run(directory, library, dtype=torch.float32, seed=seed, requests=24):
        assert said == [token for token in naive.greedy(prompt, count, stop=(0,)) if token]


@pytest.mark.parametrize("seed", range(2))
def test_in_bfloat16_greedy_text_first_differs_where_two_logits_nearly_tie(
    library: Library | None, make_checkpoint: MakeCheckpoint, seed: int
) -> None:
    directory = make_checkpoint(dtype=torch.bfloat16, seed=seed, initializer_range=0.1)
    naive = Naive(directory, torch.bfloat16)
    for prompt, _, said in mixed_run(directory, library, dtype=torch.bfloat16, seed=seed, requests=16):
        for at, token in enumerate(said):
            logits = naive.logits(prompt + said[:at])[-1]
            best = logits.topk(2).values
            if token != int(logits.argmax()):
                assert best[0] - best[1] <= NEAR_TIE
                break


@pytest.mark.parametrize(
    ("tied", "linear", "shared"), [(True, "float32", True), (True, "w8a8", False), (False, "float32", False)]
)
def test_a_tied_head_is_the_embedding_itself_where_their_types_agree(
    make_checkpoint: MakeCheckpoint, library: Library | None, tied: bool, linear: LinearChoice, shared: bool
) -> None:
    if linear == "w8a8" and library is None:
        pytest.skip("w8a8 runs in the compiled step alone")
    directory = make_checkpoint(tie_word_embeddings=tied, dtype=torch.bfloat16)
    chooser = LinearChooser(linear, torch.float32, "cpu", library)
    model = Llama(Checkpoint(directory), chooser, dtype=torch.float32, device="cpu")
    embedding = model.embedding
    one = embedding.of is model.head if isinstance(embedding, TiledRows) else getattr(model.head, "weight", None) is embedding
    assert one == shared
    stored = load_file(directory / "model.safetensors")["model.embed_tokens.weight"].float()
    ids = torch.tensor([0, 17, 319, 5])
    assert torch.equal(embedding[ids], stored[ids])
