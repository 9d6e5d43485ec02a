"""Tiny random checkpoints and a tiny tokenizer, made here so that nothing shipped is needed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from backends.runners.native_library import Library, NotCompiled, open_library

CORPUS = ["the quick brown fox jumps over the lazy dog", "pages of tokens, steps of engines", "größe, 東京, 🦊 and more"]
MakeCheckpoint = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=["torch", "compiled"])
def library(request: pytest.FixtureRequest) -> Library | None:
    """Steps on torch's operations, and on our compiled ones."""
    if request.param == "torch":
        return None
    try:
        return open_library()
    except NotCompiled as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def compiled() -> Library:
    try:
        return open_library()
    except NotCompiled as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Byte-level BPE of about 300 tokens; id 0 is the special `<|end|>`."""
    tiny = Tokenizer(models.BPE())
    tiny.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tiny.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False)
    tiny.train_from_iterator(CORPUS, trainer)
    return tiny


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> MakeCheckpoint:
    """Saves a random Llama as transformers does: `make_checkpoint(dtype=torch.float32, num_hidden_layers=3, ...)`.

    Weights are ten times larger than an untrained model's, so that its answers vary and no two logits are nearly equal.
    """
    transformers = pytest.importorskip("transformers")

    def make(*, dtype: torch.dtype = torch.float32, max_shard_size: str = "1GB", seed: int = 0, **changed: Any) -> Path:
        shape: dict[str, Any] = {
            "vocab_size": 320,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "initializer_range": 0.2,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": 0,
        }
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**shape, **changed})).to(dtype)
        directory = tmp_path_factory.mktemp("checkpoint")
        model.save_pretrained(directory, max_shard_size=max_shard_size)
        tokenizer.save(str(directory / "tokenizer.json"))
        return directory

    return make
