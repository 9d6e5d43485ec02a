"""Every variant of the compiled step gives the same numbers: those that this processor runs, and ARM's under emulation."""

import shutil
import subprocess
from pathlib import Path

import pytest

from backends.runners.native_library import (
    FLAGS,
    SOURCE,
    VARIANTS,
    NotCompiled,
    Variant,
    choose_variant,
    supported,
    this_processor,
)

GOLDEN = {
    "float32": "697766897260131d 2118339f68e1a462 4ce139e1c92e7e28",
    "bfloat16": "2972a0d6dcd4ce61 b3c9bd41da1e68be 3f7b2a66ed94cc35",
    "int8": "e474a583d0c9fbb6 336dedc2388fab2d 9af1f4419c8c31c6",
    "int4": "960bc3642391337c e2cca6b33b4da4a6 ea12f8d5743274c4",
}
"""Hashes of logits by kind of matrix, with KV in float32, bfloat16 and int8, as kernels/cpu/selftest.cpp prints them."""
BASELINE = Variant("baseline", "x86_64", frozenset(), ("-march=x86-64-v2",))
"""Not shipped: the compiler's own four lanes, with which every other build is compared."""


def printed(
    compiler: str, variant: Variant, folder: Path, run: tuple[str, ...] = (), link: tuple[str, ...] = ()
) -> dict[str, str]:
    program = folder / f"selftest-{variant.name}"
    flags = [flag for flag in FLAGS if flag not in ("-fPIC", "-shared")]
    subprocess.run([compiler, *flags, *variant.flags, *link, "-o", program, SOURCE / "selftest.cpp"], check=True, timeout=100)
    done = subprocess.run([*run, program], check=True, capture_output=True, text=True, timeout=60)
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("variant", [*VARIANTS, BASELINE], ids=lambda variant: variant.name)
def test_a_variant_gives_the_golden_logits(variant: Variant, tmp_path: Path) -> None:
    expected = dict(GOLDEN)
    if variant.machine == "aarch64":
        compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64-static")
        if compiler is None or emulator is None:
            pytest.skip("needs g++-aarch64-linux-gnu and qemu-user-static")
        found = printed(compiler, variant, tmp_path, (emulator, "-cpu", "max"), ("-static", "-w"))
    else:
        compiler = shutil.which("g++") or shutil.which("c++")
        if compiler is None or not variant.needs <= this_processor():
            pytest.skip(f"this processor, or machine, does not run {variant.name}")
        found = printed(compiler, variant, tmp_path)
    if variant.name == "avx512-bf16":  # its instruction rounds in its own way
        del expected["bfloat16"], found["bfloat16"]
    assert found == expected


def test_the_best_variant_that_a_processor_runs_is_chosen() -> None:
    v3 = frozenset({"avx2", "fma", "f16c", "bmi1", "bmi2", "movbe", "sse2"})
    v4 = v3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

    def best(flags: frozenset[str], machine: str = "x86_64") -> str:
        return next((variant.name for variant in supported(flags, machine)), "none")

    assert best(v3) == "avx2" and best(v4) == "avx2"
    assert best(v3 | {"avx_vnni"}) == "avx2-vnni"
    assert best(v4 | {"avx512_vnni"}) == "avx512-vnni"
    assert best(v4 | {"avx512_vnni", "avx512_bf16", "avx_vnni"}) == "avx512-bf16"
    assert best(frozenset({"sse2"})) == "none"
    assert best(frozenset({"asimd", "asimddp"}), "aarch64") == "neon"
    assert best(frozenset({"asimd", "asimddp", "i8mm"}), "aarch64") == "neon-i8mm"
    assert best(v4, "riscv64") == "none"


def test_a_variant_that_does_not_exist_or_run_here_is_refused_by_name() -> None:
    with pytest.raises(NotCompiled, match="there is no variant sse9: this processor runs "):
        choose_variant("sse9")
    other = next(variant for variant in VARIANTS if not variant.needs <= this_processor())
    with pytest.raises(NotCompiled, match=f"does not run the variant {other.name}: it runs "):
        choose_variant(other.name)
