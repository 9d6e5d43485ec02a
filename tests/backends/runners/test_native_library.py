"""The compiled step: made once, left out with a reason, and the same for a row whoever is beside it."""

import random
import threading
from array import array
from pathlib import Path

import pytest
import torch

from backends.config import Settings
from backends.engine.work import StepInterrupted
from backends.models.linear import LinearChooser, kernels_of
from backends.models.loader import LoadedModel, open_model
from backends.quant.weight import Weight
from backends.runners import native_library as compiled
from backends.runners.compiled_runner import CompiledRunner, step_problems
from backends.runners.native_library import Library, NotCompiled, open_library, resolve_library
from backends.wire import Sampling, Submit
from backends.worker.startup import start_engine
from tests.backends.conftest import MakeCheckpoint


@pytest.fixture
def ours(library: Library | None) -> Library:
    if library is None:
        pytest.skip("of the compiled step alone")
    return library


def test_native_library_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: Library) -> None:
    runs: list[Path] = []
    compile_it = compiled.compile_step
    monkeypatch.setattr(
        compiled, "compile_step", lambda compiler, variant, path: (runs.append(path), compile_it(compiler, variant, path))
    )
    assert open_library(tmp_path).why == open_library(tmp_path).why
    assert len(runs) == 1 and {path.suffix for path in tmp_path.iterdir()} == {".so", ""}


def test_missing_compiler_falls_back_to_torch_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, make_checkpoint: MakeCheckpoint
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    lines: list[str] = []
    settings = Settings(model=make_checkpoint(), name="tiny", listen="unix:///x", kv_tokens=320)
    engine, hello, _ = start_engine(settings, lines.append)
    assert hello.kernels["step"] == "torch"
    assert any("steps by torch" in line and "no-such-compiler" in line for line in lines)
    engine.submit(
        "me", Submit(request=0, prompt=array("I", [5, 6]).tobytes(), sampling=Sampling(max_tokens=2, ignore_eos=True))
    )
    while engine.has_work:
        engine.step()
    with pytest.raises(ValueError, match=r"no library is shipped .* no C\+\+ compiler found"):
        resolve_library("compiled", device="cpu")


def test_failing_compiler_is_named_with_its_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho cannot do that >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(NotCompiled, match="broken ended with 3: cannot do that"):
        open_library(tmp_path / "cache")


def test_unsupported_model_is_reported(ours: Library, make_checkpoint: MakeCheckpoint) -> None:
    def opened(**changed: int) -> LoadedModel:
        chooser = LinearChooser("float32", torch.float32, "cpu", ours)
        return open_model(make_checkpoint(**changed), chooser, dtype=torch.float32, device="cpu")

    assert step_problems(opened().model) == []
    assert step_problems(opened(head_dim=24).model) == ["head_dim is 24, no multiple of 16"]
    assert len(step_problems(opened(intermediate_size=100).model)) == 2
    without = LinearChooser("float32", torch.float32, "cpu")
    model = open_model(make_checkpoint(), without, dtype=torch.float32, device="cpu").model
    assert step_problems(model) == ["some of its matrices are in a kernel of torch"]
    settings = Settings(model=make_checkpoint(head_dim=24), name="tiny", listen="unix:///x", kv_tokens=320, step="compiled")
    with pytest.raises(ValueError, match="head_dim is 24"):
        start_engine(settings, lambda line: None)


@pytest.mark.parametrize("kernel", ["float32", "bfloat16", "w8a8", "int4"])
def test_row_does_not_depend_on_the_other_rows(ours: Library, kernel: str) -> None:
    generator = torch.Generator().manual_seed(0)
    linear = kernels_of(ours)[kernel](Weight(torch.randn(208, 96, generator=generator)), torch.float32)
    rows = torch.randn(23, 96, generator=generator)
    together = linear(rows)
    for i in range(23):
        assert torch.equal(linear(rows[i : i + 1])[0], together[i])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("int8", [False, True])
def test_one_thread_gives_the_result_of_several(
    ours: Library, make_checkpoint: MakeCheckpoint, dtype: torch.dtype, int8: bool
) -> None:
    """Few rows, and so many that threads take blocks of them."""
    chooser = LinearChooser("auto", dtype, "cpu", ours)
    served = open_model(make_checkpoint(dtype=dtype), chooser, dtype=dtype, device="cpu")
    found = []
    for threads in (1, 2, 3):
        kv = served.kv(num_pages=64, page_size=4, dtype=dtype, device="cpu", int8=int8)
        runner = CompiledRunner(ours, served.model, kv, threads=threads)  # type: ignore[arg-type]
        rng = random.Random(0)
        pages = rng.sample(range(64), 60)
        texts = [rng.choices(range(320), k=count) for count in (7, 230)]
        found.append(torch.cat([runner.all_logits(text, pages) for text in texts]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=0.05 if int8 or dtype is torch.bfloat16 else 1e-4, rtol=1e-3)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("count", [3, 230])
def test_interrupted_step_is_run_again(ours: Library, make_checkpoint: MakeCheckpoint, threads: int, count: int) -> None:
    chooser = LinearChooser("float32", torch.float32, "cpu", ours)
    served = open_model(make_checkpoint(), chooser, dtype=torch.float32, device="cpu")
    kv = served.kv(num_pages=64, page_size=4, dtype=torch.float32, device="cpu", int8=False)
    runner = CompiledRunner(ours, served.model, kv, threads=threads)  # type: ignore[arg-type]
    text, pages = random.Random(0).choices(range(320), k=count), list(range(60))
    expected = runner.all_logits(text, pages)
    over, num_broken_off = threading.Event(), 0

    def insist() -> None:
        while not over.is_set():
            runner.interrupt()

    insisting = threading.Thread(target=insist)
    insisting.start()
    try:
        for _ in range(2000):
            try:
                runner.all_logits(text, pages)
            except StepInterrupted:
                num_broken_off += 1
                if num_broken_off == 5:
                    break
    finally:
        over.set()
        insisting.join()
    assert num_broken_off == 5
    torch.testing.assert_close(runner.all_logits(text, pages), expected, atol=0.0, rtol=0.0)
