"""Every architecture gives transformers' logits: read in chunks, over shared pages, in batches that mix all of it."""

import random
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from backends.engine.engine import Engine
from backends.engine.request_limits import RequestLimits
from backends.engine.work import Sampled, Work
from backends.models.linear import LinearChooser
from backends.models.loader import LoadedModel, open_model
from backends.quant.weight import UnsupportedCheckpoint
from backends.runners.compiled_runner import CompiledRunner
from backends.runners.native_library import Library
from backends.runners.registry import cpu_runner
from backends.runners.sampler import sample
from backends.runners.torch_runner import TorchRunner
from backends.wire import Sampling, Submit
from tests.backends.fakes import Ticks
from tests.backends.families import FAMILIES, NATIVE, reference, save

pytest.importorskip("transformers")
TOLERANCE = 1e-4


class Silent:
    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "x"


class Witness:
    """Keeps, for every step that samples, the tokens so far and the logits that they led to."""

    def __init__(self, runner: TorchRunner | CompiledRunner) -> None:
        self._runner = runner
        self.seen: list[tuple[list[int], Tensor]] = []
        self.kinds: set[str] = set()
        self._asked: Iterator[Work] = iter(())

    def run(self, work: Sequence[Work]) -> list[list[Sampled]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self._runner.__module__ + ".sample", self._sample)
            for one in work:  # one by one, then all at once as an engine does
                self._asked = iter([one] if one.samples else [])
                self._runner.run([one])
            laid = sorted(work, key=lambda one: one.layout) if isinstance(self._runner, TorchRunner) else work
            self._asked = iter([one for one in laid if one.samples])
            results = self._runner.run(work)
        self.kinds |= {"mixed"} if len({one.num_tokens > 1 for one in work}) == 2 else set()
        self.kinds |= {"chunk" for one in work if one.start and one.num_tokens > 1}
        return results

    def _sample(self, logits: Tensor, *asked: Any) -> list[Sampled]:
        self.seen += [(list(next(self._asked).sequence.tokens), row.clone()) for row in logits]
        return sample(logits, *asked)


def opened(directory: Path, library: Library | None = None) -> LoadedModel:
    chooser = LinearChooser("float32", torch.float32, "cpu", library)
    return open_model(directory, chooser, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_architecture_gives_the_logits_of_transformers(family: str, library: Library | None, tmp_path: Path) -> None:
    directory = save(family, tmp_path, max_shard_size="40KB" if family == "qwen3" else "1GB")
    served = opened(directory, library)
    assert served.path == ("native" if family in NATIVE else "transformers")
    rng = random.Random(family)
    of = RequestLimits(
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
    kv = served.kv(num_pages=of.num_pages, page_size=4, dtype=torch.float32, device="cpu")
    runner = cpu_runner(served.model, kv, dtype=torch.float32, library=library)
    assert isinstance(runner, CompiledRunner) == (library is not None and family in NATIVE)
    witness = Witness(runner)
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


def test_architecture_with_state_besides_kv_is_refused_by_name(tmp_path: Path) -> None:
    import transformers

    config = transformers.MambaConfig(vocab_size=320, hidden_size=16, num_hidden_layers=1, state_size=4)
    transformers.MambaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedCheckpoint, match="Mamba"):
        opened(tmp_path)
