"""Runs tiny models on the kernels and on torch's operations and prints, by family, whether they say the same.

On a GPU where there is one, else in Triton's interpreter, which must be asked for before Triton is imported.
"""

import json
import os
import random
import shutil
import tempfile
from array import array
from pathlib import Path

if shutil.which("nvidia-smi") is None:
    os.environ["TRITON_INTERPRET"] = "1"

import torch

from backends.engine.engine import Engine
from backends.engine.request_limits import RequestLimits
from backends.engine.work import Runner
from backends.models.linear import LinearChooser
from backends.models.llama import Llama
from backends.models.loader import open_model
from backends.runners.torch_runner import TorchRunner
from backends.runners.triton_runner import TritonRunner
from backends.wire import Sampling, Submit
from tests.backends.fakes import Ticks
from tests.backends.families import save

PAGES, PAGE = 40, 4


class Letters:
    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(chr(0x4E00 + token) for token in ids)


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    same = {}
    for family, int8 in (("qwen3", False), ("mistral", True)):
        with tempfile.TemporaryDirectory() as folder:
            directory = save(family, Path(folder))
            same[family] = said(directory, device, True, int8) == said(directory, device, False, int8)
    print(json.dumps(same))


def said(directory: Path, device: str, kernels: bool, int8: bool) -> dict[int, str]:
    """Prompts in chunks that share a prefix, decoded together."""
    chooser = LinearChooser("float32", torch.float32, device)
    served = open_model(directory, chooser, dtype=torch.float32, device=device)
    kv = served.kv(num_pages=PAGES + 1, page_size=PAGE, dtype=torch.float32, device=device, int8=int8)
    assert isinstance(served.model, Llama)
    runner: Runner
    if kernels:
        runner = TritonRunner(served.model, kv, device=device, max_sequences=2)
        runner.warm_up(13)
    else:
        runner = TorchRunner(served.model, kv, dtype=torch.float32, device=device)
    of = RequestLimits(
        max_context=served.max_positions,
        vocab_size=served.vocab_size,
        num_pages=PAGES,
        page_size=PAGE,
        max_sequences=2,
        prefill_tokens=13,
        eos_tokens=frozenset(),
        kv_bytes=1,
        fingerprint="f",
    )
    rng = random.Random(0)
    engine = Engine(runner, Letters(), of, clock_ns=Ticks(), rng=rng)
    stem = rng.choices(range(1, 320), k=20)
    for request in range(3):
        prompt = array("I", stem[: rng.randrange(5, 20)] + rng.choices(range(1, 320), k=3))
        engine.submit("me", Submit(request=request, prompt=prompt.tobytes(), sampling=Sampling(max_tokens=4)))
        engine.step()
    while engine.has_work:
        engine.step()
    text: dict[int, str] = {}
    for piece in engine.take_output().pieces["me"]:
        text[piece.request] = text.get(piece.request, "") + piece.text
    return text


if __name__ == "__main__":
    main()
