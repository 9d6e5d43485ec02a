"""Which code runs a model's steps."""

from pathlib import Path

import pytest
import torch

from backends.models import linear
from backends.models.linear import KEEPS, LinearChooser, Timing
from backends.models.loader import open_model
from backends.runners.compiled_runner import CompiledRunner
from backends.runners.native_library import Library
from backends.runners.registry import cpu_runner

ZOO = Path(__file__).parents[3] / "backends" / "zoo"
KERNELS = sorted({name for names in KEEPS.values() for name in names})


@pytest.mark.parametrize("fastest", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_smaller_shipped_model_never_gets_a_slower_kind_of_step(
    library: Library | None, fastest: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the probe measures: each kernel in turn is the fastest by far."""
    monkeypatch.setattr(
        linear, "_time", lambda name, *_: Timing(name, 1.0, 1.0) if name == fastest else Timing(name, 100.0, 100.0)
    )

    def is_compiled(name: str) -> bool:
        served = open_model(ZOO / name, LinearChooser("auto", dtype, "cpu", library), dtype=dtype, device="cpu")
        kv = served.kv(num_pages=4, page_size=16, dtype=dtype, device="cpu", int8=False)
        return isinstance(cpu_runner(served.model, kv, dtype=dtype, library=library), CompiledRunner)

    smaller, larger = is_compiled("pico"), is_compiled("nano")
    assert smaller or not larger
    assert smaller is (library is not None)
