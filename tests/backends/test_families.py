"""Every architecture gives transformers' logits: read in chunks, over shared pages, in batches that mix all of it."""

import random
from array import array
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from backends.attention import PagedKV
from backends.engine import Engine
from backends.limits import Limits
from backends.linear import LinearChooser
from backends.llama import Batch
from backends.model import Served, open_model
from backends.runner import Model, ModelRunner
from backends.sampler import Sampled
from backends.scheduler import Work
from backends.weight import UnsupportedCheckpoint
from backends.wire import Sampling, Submit
from tests.backends.fakes import Ticks
from tests.backends.families import FAMILIES, NATIVE, reference, save

pytest.importorskip("transformers")
TOLERANCE = 1e-4


class Silent:
    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "x"


class Watched:
    """A model whose last logits can be looked at."""

    def __init__(self, model: Model) -> None:
        self._model, self.windows, self.logits = model, model.windows, torch.empty(0)

    def forward(self, batch: Batch, kv: PagedKV) -> Tensor | None:
        logits = self._model.forward(batch, kv)
        self.logits = torch.empty(0) if logits is None else logits
        return logits


class Witness(ModelRunner):
    """Keeps, for every step that samples, the tokens so far and the logits that they led to. Work is given in laid order."""

    def __init__(self, served: Served, kv: PagedKV) -> None:
        self.watched = Watched(served.model)
        super().__init__(self.watched, kv, dtype=torch.float32, device="cpu")
        self.seen: list[tuple[list[int], Tensor]] = []
        self.kinds: set[str] = set()

    def run(self, work: Sequence[Work]) -> list[list[Sampled]]:
        for one in work:  # one by one, so that the row is known; then all at once, as an engine does
            super().run([one])
        results = super().run(work)
        laid = sorted(work, key=lambda one: (one.num_tokens > 1, len(one.sequence.pages).bit_length()))
        sampling = [one for one in laid if one.samples]
        for one, logits in zip(sampling, self.watched.logits, strict=True):
            self.seen.append((list(one.sequence.tokens), logits))
        self.kinds |= {"mixed"} if len({one.num_tokens > 1 for one in work}) == 2 else set()
        self.kinds |= {"chunk" for one in work if one.start and one.num_tokens > 1}
        return results


def opened(directory: Path) -> Served:
    chooser = LinearChooser("float32", torch.float32, "cpu")
    return open_model(directory, chooser, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_architecture_gives_the_logits_of_transformers(family: str, tmp_path: Path) -> None:
    directory = save(family, tmp_path, max_shard_size="40KB" if family == "qwen3" else "1GB")
    served = opened(directory)
    assert served.path == ("native" if family in NATIVE else "transformers")
    rng = random.Random(family)
    of = Limits(
        max_context=served.max_positions,
        vocab_size=served.vocab_size,
        num_pages=40,
        page_size=4,
        max_sequences=4,
        prefill_tokens=13,
        eos_tokens=frozenset(served.eos_tokens),
        kv_bytes=1,
        fingerprint="f",
    )
    witness = Witness(served, served.kv(num_pages=of.num_pages, page_size=4, dtype=torch.float32, device="cpu"))
    engine = Engine(witness, Silent(), of, clock_ns=Ticks(), rng=rng)
    stem = rng.choices(range(1, 320), k=30)
    for request in range(8):
        prompt = array("I", stem[: rng.randrange(5, 30)] + rng.choices(range(1, 320), k=rng.randrange(1, 6)))
        engine.submit("me", Submit(request=request, prompt=prompt.tobytes(), sampling=Sampling(max_tokens=5)))
        while len(engine.scheduler.waiting) > 1:
            engine.step()
    while engine.has_work:
        engine.step()
    engine.check()
    finished = [end for _, end in engine.take_output().finished]
    assert len(finished) == 8 and sum(end.num_cached_tokens for end in finished) and witness.kinds == {"mixed", "chunk"}
    expected = reference(directory)
    for tokens, logits in witness.seen:
        torch.testing.assert_close(logits, expected(tokens)[-1], atol=TOLERANCE, rtol=TOLERANCE)


def test_what_keeps_another_state_than_kv_is_refused_by_name(tmp_path: Path) -> None:
    import transformers

    config = transformers.MambaConfig(vocab_size=320, hidden_size=16, num_hidden_layers=1, state_size=4)
    transformers.MambaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedCheckpoint, match="Mamba"):
        opened(tmp_path)
