"""KV in int8 and in the host tier: what comes back is what was written."""

import random
from array import array

import pytest
import torch

from backends.engine.engine import Engine
from backends.engine.request_limits import RequestLimits
from backends.engine.work import Reload
from backends.kv_cache.host_cache import HostCache
from backends.models.linear import LinearChooser
from backends.models.loader import LoadedModel, open_model
from backends.models.paged_kv import Int8KV, PagedKV
from backends.runners.native_library import Library
from backends.runners.page_copier import ThreadCopier
from backends.runners.registry import cpu_runner
from backends.wire import Sampling, Submit
from tests.backends.conftest import MakeCheckpoint
from tests.backends.fakes import Ticks
from tests.backends.models.test_llama import CharacterDecoder

SIZES = {"layers": 2, "num_pages": 5, "page_size": 4, "kv_heads": 2, "head_dim": 8}


def test_int8_kv_is_within_half_a_step_of_what_was_written() -> None:
    kv = Int8KV(**SIZES, dtype=torch.float32, device="cpu")  # type: ignore[arg-type]
    written = torch.randn(6, 4, 8, generator=torch.Generator().manual_seed(0))
    kv.write(1, torch.tensor([4, 5, 6, 7, 16, 17]), written)
    k, v = kv.read(1, torch.tensor([1, 4]), 1, 6)
    found = torch.cat((k, v), 1)[0].transpose(0, 1)
    assert ((found - written).abs() <= written.abs().amax(-1, keepdim=True) / 127 * 0.501).all()
    k, v = kv.read(1, slice(4, 8), 1, 4)
    assert torch.equal(torch.cat((k, v), 1)[0].transpose(0, 1), found[:4])


@pytest.mark.parametrize("kind", [PagedKV, Int8KV])
def test_host_pages_round_trip_unchanged(kind: type[PagedKV]) -> None:
    kv = kind(**SIZES, dtype=torch.float32, device="cpu")  # type: ignore[arg-type]
    copier = ThreadCopier(kv, 3)
    for layer in range(2):
        kv.write(layer, torch.arange(20), torch.randn(20, 4, 8))
    before = [store.clone() for store in kv.stores()]
    copier.save([1, 4], [2, 0]).wait()
    for store in kv.stores():
        store.zero_()
    promise = copier.load([0, 2], [3, 1])
    promise.wait()
    assert promise.done()
    for store, was in zip(kv.stores(), before, strict=True):
        assert torch.equal(store[:, 1], was[:, 1]) and torch.equal(store[:, 3], was[:, 4]) and not store[:, 0].any()
    copier.close()


def answers(served: LoadedModel, kv: PagedKV, library: Library | None, host_pages: int) -> tuple[dict[int, str], int]:
    of = RequestLimits(
        max_context=120,
        vocab_size=320,
        num_pages=20,
        page_size=4,
        max_sequences=2,
        prefill_tokens=24,
        eos_tokens=frozenset(),
        kv_bytes=1,
        fingerprint="f",
    )
    copier = ThreadCopier(kv, max(host_pages, 1))
    tier: HostCache[Reload] | None = HostCache(host_pages, copier) if host_pages else None
    runner = cpu_runner(served.model, kv, dtype=torch.float32, library=library)
    engine = Engine(runner, CharacterDecoder(), of, clock_ns=Ticks(), rng=random.Random(0), tier=tier)
    rng = random.Random(1)
    chats = [rng.choices(range(1, 320), k=40) for _ in range(4)]
    for request in range(12):
        prompt = array("I", chats[request % 4] + rng.choices(range(1, 320), k=request // 4))
        engine.submit("me", Submit(request=request, prompt=prompt.tobytes(), sampling=Sampling(max_tokens=5)))
        while engine.has_work and (request % 2 or len(engine.scheduler.waiting) > 1):
            engine.step()
            engine.check()
    copier.close()
    said: dict[int, str] = {}
    output = engine.take_output()
    for piece in output.pieces["me"]:
        said[piece.request] = said.get(piece.request, "") + piece.text
    return said, sum(end.num_cached_tokens for _, end in output.finished)


@pytest.mark.parametrize("int8", [False, True])
def test_host_tier_gives_the_same_text_with_less_prefill(
    make_checkpoint: MakeCheckpoint, library: Library | None, int8: bool
) -> None:
    chooser = LinearChooser("float32", torch.float32, "cpu", library)
    served = open_model(make_checkpoint(), chooser, dtype=torch.float32, device="cpu")
    sizes = {"num_pages": 20, "page_size": 4, "dtype": torch.float32, "device": "cpu", "int8": int8}
    without, cached_without = answers(served, served.kv(**sizes), library, 0)  # type: ignore[arg-type]
    found, cached = answers(served, served.kv(**sizes), library, 60)  # type: ignore[arg-type]
    assert found == without and len(found) == 12
    assert cached > cached_without + 100
