"""From settings to an engine that answers: every option, both paths, and memory that holds the weights once."""

import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from backends.config import Settings
from backends.quant.weight import UnsupportedCheckpoint
from backends.wire import Sampling, Submit
from backends.worker.startup import start_engine
from tests.backends.conftest import MakeCheckpoint
from tests.backends.families import save


@pytest.mark.parametrize(
    "options",
    [{}, {"kv_dtype": "int8"}, {"host_kv_tokens": 640}, {"speculate": "lookup"}, {"linear": "int4"}],
    ids=lambda options: "-".join(options) or "plain",
)
def test_an_engine_starts_with_every_option(make_checkpoint: MakeCheckpoint, options: dict[str, Any]) -> None:
    lines: list[str] = []
    settings = Settings(model=make_checkpoint(), name="tiny", listen="unix:///x", kv_tokens=320, **options)
    engine, hello, _ = start_engine(settings, lines.append)
    for request in range(3):
        prompt = array("I", [request + 1, 5, 6, 7] * 12).tobytes()
        engine.submit("me", Submit(request=request, prompt=prompt, sampling=Sampling(max_tokens=9, ignore_eos=True)))
    while engine.has_work:
        engine.step()
        engine.check()
    assert [end.num_output_tokens for _, end in engine.take_output().finished] == [9, 9, 9]
    assert hello.kernels["path"] == "native" and any("2 of 2 layers" in line for line in lines)
    assert (engine.tier is not None) == ("host_kv_tokens" in options)
    plain = hello.fingerprint.endswith("-float32")
    assert plain == (not options.keys() & {"kv_dtype", "linear"})


def test_a_draft_of_the_same_tokenizer_guesses_and_another_is_refused(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    lines: list[str] = []
    model, draft = make_checkpoint(), make_checkpoint(seed=1, num_hidden_layers=1)
    settings = Settings(model=model, name="tiny", listen="unix:///x", draft=draft)
    engine, hello, _ = start_engine(settings, lines.append)
    assert engine.speculator is not None and set(engine.speculator.tallies) == {"draft"}
    plain, plain_hello, _ = start_engine(Settings(model=model, name="tiny", listen="unix:///x"), lines.append)
    assert hello.fingerprint == plain_hello.fingerprint and plain.speculator is None
    stranger = make_checkpoint(seed=2)
    changed = Tokenizer.from_str(tokenizer.to_str())
    changed.add_tokens(["stranger"])
    changed.save(str(stranger / "tokenizer.json"))
    with pytest.raises(ValueError, match="same tokenizer"):
        start_engine(Settings(model=model, name="tiny", listen="unix:///x", draft=stranger), lines.append)


def test_transformers_architecture_starts(tmp_path: Path, tokenizer: Tokenizer) -> None:
    directory = save("gpt-neox", tmp_path)
    with pytest.raises(UnsupportedCheckpoint, match=r"no tokenizer\.json"):
        start_engine(Settings(model=directory, name="tiny", listen="unix:///x"), lambda line: None)
    tokenizer.save(str(directory / "tokenizer.json"))
    _, hello, _ = start_engine(Settings(model=directory, name="tiny", listen="unix:///x", kv_tokens=64), lambda line: None)
    assert hello.kernels["path"] == "transformers"


LOAD = """
import sys
from pathlib import Path
import torch
from backends.models.linear import LinearChooser
from backends.models.loader import open_model

def anonymous():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

before, most = anonymous(), 0
def progress(done, of):
    global most
    most = max(most, anonymous())
chooser = LinearChooser("float32", torch.float32, "cpu")
open_model(Path(sys.argv[1]), chooser, dtype=torch.float32, device="cpu", progress=progress)
print(max(most, anonymous()) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
def test_loading_takes_about_the_memory_of_the_weights(make_checkpoint: MakeCheckpoint) -> None:
    directory = make_checkpoint(hidden_size=512, intermediate_size=1536, num_hidden_layers=8, max_shard_size="20MB")
    size = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    assert size > 90e6 and len(list(directory.glob("*.safetensors"))) > 3
    ran = subprocess.run(
        [sys.executable, "-c", LOAD, str(directory)], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]
    )
    assert int(ran.stdout) < 1.35 * size
