"""Every kernel multiplies, and the probe chooses among those that keep the stored weights."""

import pytest
import torch

from backends.models.linear import (
    LinearChooser,
    Timing,
    candidates,
    fastest,
    kernels_of,
    quantize_groups,
    quantize_rows,
)
from backends.quant.weight import Weight, stack
from backends.runners.native_library import Library


def weight(bias: bool = False) -> Weight:
    generator = torch.Generator().manual_seed(0)
    return Weight(torch.randn(48, 64, generator=generator), None, torch.randn(48, generator=generator) if bias else None)


@pytest.mark.parametrize("rows", [1, 2, 33])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("kernel", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02), ("w8a8", 0.03), ("int4", 0.15)])
def test_every_linear_kernel_multiplies(library: Library | None, kernel: str, tolerance: float, bias: bool, rows: int) -> None:
    x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.linear(x, weight(bias).values, weight(bias).bias)
    kernels = kernels_of(library)
    if kernel not in kernels:
        pytest.skip("w8a8 runs in the compiled step alone")
    found = kernels[kernel](weight(bias), torch.float32)(x)
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def test_w8a8_takes_rows_of_zeros_and_a_bfloat16_stream(compiled: Library) -> None:
    linear = kernels_of(compiled)["w8a8"](weight(), torch.bfloat16)
    found = linear(torch.zeros(2, 64, dtype=torch.bfloat16))
    assert found.dtype is torch.bfloat16 and not found.any()


@pytest.mark.parametrize(("width", "rows"), [(16, 1), (64, 5), (768, 33), (2048, 7)])
def test_integer_sums_are_exact_at_the_largest_values(compiled: Library, width: int, rows: int) -> None:
    """Where 16 bits saturate: weights and activations of 127 and -127 throughout."""
    signs = torch.randint(0, 2, (48, width), generator=torch.Generator().manual_seed(2)) * 2 - 1
    values, x = (127 * signs).to(torch.int8), 127.0 * (signs[:1] * torch.ones(rows, 1))
    linear = kernels_of(compiled)["w8a8"](Weight(values, torch.ones(48, 1)), torch.float32)
    assert torch.equal(linear(x).double(), x.double() @ values.double().T)


def test_w8a8_without_the_compiled_step_is_refused_and_auto_goes_without_it() -> None:
    with pytest.raises(ValueError, match="w8a8 runs in the compiled step alone"):
        LinearChooser("w8a8", torch.float32, "cpu")
    chooser = LinearChooser("auto", torch.float32, "cpu")
    chooser.build(Weight(*quantize_rows(weight())))
    assert chooser.chosen_for_layers == ["float32"]


def test_stored_int8_is_used_as_it_is() -> None:
    values, scale = quantize_rows(weight())
    stored = Weight(values, scale)
    again, same = quantize_rows(stored)
    assert again is values and same is scale
    assert (stored.dense(torch.float32) - weight().values).abs().max() <= scale.max() / 2 * 1.001
    assert stack([stored, stored]).scale.shape == (96, 1)  # type: ignore[union-attr]


def test_auto_considers_only_kernels_that_keep_the_stored_weights() -> None:
    assert candidates("float32", torch.float32) == ("float32",)
    assert candidates("bfloat16", torch.float32) == ("float32", "bfloat16")
    assert candidates("int8", torch.float32) == ("float32", "w8a8")
    assert candidates("int4", torch.bfloat16) == ("int4",)
    assert candidates("float32", torch.bfloat16) == ("bfloat16",)


def test_the_first_kernel_is_kept_unless_another_is_clearly_faster() -> None:
    assert fastest([Timing("float32", 10, 100), Timing("bfloat16", 9.8, 98)]) == "float32"
    assert fastest([Timing("float32", 10, 100), Timing("bfloat16", 12, 30)]) == "bfloat16"
    assert fastest([Timing("float32", 10, 100), Timing("bfloat16", 12, 30)], prefills=False) == "float32"


def test_requested_kernel_is_used_and_a_shape_is_probed_once() -> None:
    chooser = LinearChooser("bfloat16", torch.float32, "cpu")
    chooser.build(weight())
    assert chooser.chosen_for_layers == ["bfloat16"]
    probing = LinearChooser("auto", torch.float32, "cpu")
    stored = Weight(weight().values.bfloat16())
    probing.build(stored)
    probing.build(stored)
    assert len(probing.timings) == 1 and len(probing.chosen_for_layers) == 2
    assert probing.reasons()[0].startswith("64 x 48 in ")


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
def test_int4_computes_with_exactly_what_it_stores(library: Library | None, zeros: bool, ordered: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    values = torch.randint(-8, 8, (48, 128), generator=generator, dtype=torch.int8)
    scale = torch.rand(48, 4, generator=generator) + 0.5
    zero = torch.randint(-8, 8, (48, 4), generator=generator).float() if zeros else None
    order = torch.randperm(128, generator=generator) if ordered else None
    stored = Weight(values, scale, torch.randn(48, generator=generator), zero, 32, bits=4, order=order)
    x = torch.randn(7, 128, generator=generator)
    torch.testing.assert_close(
        kernels_of(library)["int4"](stored, torch.float32)(x),
        torch.nn.functional.linear(x, stored.dense(torch.float32), stored.bias),
        atol=1e-3,
        rtol=1e-4,
    )


def test_int4_takes_rows_by_16() -> None:
    with pytest.raises(ValueError, match="47 x 64 is not served in int4"):
        quantize_groups(Weight(weight().values[:47]))
