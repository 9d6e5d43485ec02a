"""Native library for CPU steps, one for each kind of processor: shipped in the wheel, or compiled once on this machine.

Every variant gives the same integer sums. Without a library torch operations run the steps, and the reason is logged.
"""

import argparse
import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from backends.config import Resolved, StepChoice

SOURCE = Path(__file__).parents[2] / "kernels" / "cpu"
SHIPPED = SOURCE / "lib"
"""Folder of the libraries that `make wheel` builds. An installation from a checkout has none."""
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fopenmp", "-fPIC", "-shared", "-Wno-psabi")
COMPILERS = ("c++", "g++", "clang++")
TIMEOUT_S = 120


class NotCompiled(RuntimeError):
    """No library is available; the message is the reason."""


class Variant(NamedTuple):
    """A build of the step. `needs` are flags of /proc/cpuinfo, `flags` those of the compiler."""

    name: str
    machine: str
    needs: frozenset[str]
    flags: tuple[str, ...]


V3 = frozenset({"avx2", "fma", "f16c", "bmi1", "bmi2", "movbe"})
V4 = V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
VARIANTS = (
    Variant("avx512-bf16", "x86_64", V4 | {"avx512_vnni", "avx512_bf16"}, ("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16")),
    Variant("avx512-vnni", "x86_64", V4 | {"avx512_vnni"}, ("-march=x86-64-v4", "-mavx512vnni")),
    Variant("avx2-vnni", "x86_64", V3 | {"avx_vnni"}, ("-march=x86-64-v3", "-mavxvnni")),
    Variant("avx2", "x86_64", V3, ("-march=x86-64-v3",)),
    Variant("neon-i8mm", "aarch64", frozenset({"asimddp", "i8mm"}), ("-march=armv8.2-a+dotprod+i8mm",)),
    Variant("neon", "aarch64", frozenset({"asimddp"}), ("-march=armv8.2-a+dotprod",)),
)
"""Best first. A processor that supports one also supports those below it on the same machine."""
NATIVE = Variant("native", platform.machine(), frozenset(), ("-march=native",))
"""For this exact processor; never chosen automatically. Float sums are the same, but the compiler chooses the instructions."""


class Library(NamedTuple):
    """`variant` is the name of the build, `why` the reason to log."""

    calls: ctypes.CDLL
    variant: str
    why: str


def supported(flags: frozenset[str], machine: str) -> list[Variant]:
    """Return the variants that a processor with these flags supports, best first."""
    return [variant for variant in VARIANTS if variant.machine == machine and variant.needs <= flags]


def this_machine() -> str:
    """Return the architecture as Linux names it."""
    return {"arm64": "aarch64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())


def this_processor() -> frozenset[str]:
    """Return processor flags in Linux's names. Apple's processors have those that the NEON variants need."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        lines = path.read_text().splitlines()
        line = next((line for line in lines if line.startswith(("flags", "Features"))), "")
        return frozenset(line.partition(":")[2].split())
    return frozenset({"asimddp"}) if platform.system() == "Darwin" else frozenset()


def choose_variant(name: str = "auto") -> Variant:
    """Return the variant to use. Raise NotCompiled if this processor supports none, or not the requested one."""
    machine = this_machine()
    if name == NATIVE.name:
        return NATIVE
    runs = supported(this_processor(), machine)
    chosen = [variant for variant in runs if name in ("auto", variant.name)]
    if chosen:
        return chosen[0]
    names = ", ".join(variant.name for variant in runs) or "none"
    if name == "auto":
        raise NotCompiled(
            f"no variant of the compiled step runs on this {machine} processor: it needs AVX2 or NEON with dotprod"
        )
    if name not in {variant.name for variant in VARIANTS}:
        raise NotCompiled(f"there is no variant {name}: this processor runs {names}")
    raise NotCompiled(f"this processor does not run the variant {name}: it runs {names}")


def open_library(folder: Path | None = None, variant: str = "auto") -> Library:
    """Return the library shipped with this package, else one from `folder`, else one compiled into it. Raise NotCompiled."""
    chosen = choose_variant(variant)
    shipped = SHIPPED / f"step-{chosen.name}-{_source()}.so"
    if shipped.is_file():
        return _load(shipped, chosen, f"shipped, variant {chosen.name}")
    compiler = _compiler()
    folder = folder or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headway" / "cpu"
    path = folder / f"step-{chosen.name}-{_key(compiler, chosen)}.so"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with (folder / "lock").open("w") as lock:  # several workers may start at once; one compiles
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not path.exists():
                    compile_step(compiler, chosen, path)
    except OSError as error:
        raise NotCompiled(f"{path} cannot be made: {error}") from error
    return _load(path, chosen, f"compiled by {compiler}, variant {chosen.name}")


def resolve_library(choice: StepChoice, *, device: str, variant: str = "auto") -> Resolved[Library | None]:
    """Return the library or None. Raise ValueError if the compiled step or a variant is requested and unavailable."""
    if choice == "torch" or device != "cpu":
        return Resolved(None, "asked for" if choice == "torch" else f"the compiled step is for CPUs, not for {device}")
    try:
        library = open_library(variant=variant)
    except NotCompiled as error:
        if choice == "compiled" or variant != "auto":
            raise ValueError(f"--step compiled --variant {variant}: {error}") from error
        return Resolved(None, str(error))
    return Resolved(library, library.why)


def compile_step(compiler: str, variant: Variant, path: Path) -> None:
    """Compile a variant; `path` appears complete or not at all. Raise NotCompiled."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        command = [compiler, *FLAGS, *variant.flags, "-o", str(made), str(SOURCE / "step.cpp")]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise NotCompiled(f"{compiler} took more than {TIMEOUT_S} s") from error
        if done.returncode:
            raise NotCompiled(f"{compiler} ended with {done.returncode}: {done.stderr[-500:]}")
        made.replace(path)


def build_all(folder: Path) -> Iterator[Path]:
    """Compile every variant of this machine's architecture into `folder`, for the wheel. Raise NotCompiled."""
    compiler = _compiler()
    folder.mkdir(parents=True, exist_ok=True)
    machine = this_machine()
    for variant in VARIANTS:
        if variant.machine == machine:
            path = folder / f"step-{variant.name}-{_source()}.so"
            compile_step(compiler, variant, path)
            yield path


def _load(path: Path, variant: Variant, why: str) -> Library:
    try:
        calls = ctypes.CDLL(str(path))
    except OSError as error:
        raise NotCompiled(f"{path} cannot be loaded: {error}") from error
    pointer, whole, many = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    calls.headway_runner_open.restype = pointer
    calls.headway_runner_close.argtypes = [pointer]
    calls.headway_step.argtypes, calls.headway_step.restype = [pointer, pointer, pointer, pointer, whole], whole
    calls.headway_pack.argtypes = [whole, many, many, many, pointer, pointer, pointer]
    calls.headway_product.argtypes = [pointer, pointer, many, pointer, pointer, whole]
    return Library(calls, variant.name, why)


def _compiler() -> str:
    asked = os.environ.get("CXX")
    found = next((path for name in ([asked] if asked else COMPILERS) if (path := shutil.which(name))), None)
    if found is None:
        raise NotCompiled(
            f"no library is shipped for this processor and no C++ compiler found, looked for {asked or ', '.join(COMPILERS)}"
        )
    return found


def _source() -> str:
    """Return a hash of the source, so that a library of another source is never loaded."""
    digest = hashlib.blake2b(repr(FLAGS).encode(), digest_size=6)
    for path in sorted(SOURCE.glob("*.[ch]*")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _key(compiler: str, variant: Variant) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False, timeout=TIMEOUT_S).stdout
    processor = sorted(this_processor()) if variant is NATIVE else []  # a home folder may be shared by machines
    of = repr((_source(), variant, version, processor))
    return hashlib.blake2b(of.encode(), digest_size=12).hexdigest()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compiles every variant of the CPU step for this architecture.")
    parser.add_argument("folder", nargs="?", type=Path, default=SHIPPED)
    for built in build_all(parser.parse_args().folder):
        print(f"headway: built {built}", file=sys.stderr)
