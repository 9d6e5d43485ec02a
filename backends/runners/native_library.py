"""Our C++ for CPU steps: compiled once for this processor by the compiler found here, kept in a cache folder.

Where there is no compiler, or what it makes does not load, steps run on torch's operations, and the reason is said.
"""

import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from backends.config import Resolved, StepChoice

SOURCE = Path(__file__).parents[2] / "kernels" / "cpu"
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-fPIC", "-shared", "-Wno-psabi")
COMPILERS = ("c++", "g++", "clang++")
TIMEOUT_S = 120


class NotCompiled(RuntimeError):
    """Why there is no library."""


class Library(NamedTuple):
    """`takes_int8`: this processor multiplies bytes in one instruction. `why` is what to log."""

    calls: ctypes.CDLL
    takes_int8: bool
    why: str


def open_library(folder: Path | None = None) -> Library:
    """Compiles unless `folder` has what this source, compiler and processor make. Raises NotCompiled."""
    compiler = _compiler()
    folder = folder or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headway" / "cpu"
    path = folder / f"step-{_key(compiler)}.so"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with (folder / "lock").open("w") as lock:  # several workers start at once, and one compiles
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not path.exists():
                    _compile(compiler, path)
        calls = ctypes.CDLL(str(path))
    except OSError as error:
        raise NotCompiled(f"{path} cannot be made or loaded: {error}") from error
    pointer, whole, many = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    calls.headway_runner_open.restype = pointer
    calls.headway_runner_close.argtypes = [pointer]
    calls.headway_step.argtypes, calls.headway_step.restype = [pointer, pointer, pointer, pointer, whole], whole
    calls.headway_pack.argtypes = [whole, many, many, many, pointer, pointer, pointer]
    calls.headway_product.argtypes = [pointer, pointer, many, pointer, pointer, whole]
    return Library(calls, bool(calls.headway_takes_int8()), f"compiled by {compiler} for this processor")


def resolve_library(choice: StepChoice, *, device: str) -> Resolved[Library | None]:
    """Raises ValueError where the compiled step is asked for and cannot be had."""
    if choice == "torch" or device != "cpu":
        return Resolved(None, "asked for" if choice == "torch" else f"the compiled step is for CPUs, not for {device}")
    try:
        library = open_library()
    except NotCompiled as error:
        if choice == "compiled":
            raise ValueError(f"--step compiled: {error}") from error
        return Resolved(None, str(error))
    return Resolved(library, library.why)


def _compiler() -> str:
    asked = os.environ.get("CXX")
    found = next((path for name in ([asked] if asked else COMPILERS) if (path := shutil.which(name))), None)
    if found is None:
        raise NotCompiled(f"no C++ compiler found, looked for {asked or ', '.join(COMPILERS)}")
    return found


def _key(compiler: str) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for path in sorted(SOURCE.iterdir()):
        digest.update(path.read_bytes())
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False, timeout=TIMEOUT_S).stdout
    digest.update(repr((FLAGS, version, platform.machine(), _processor())).encode())
    return digest.hexdigest()


def _processor() -> str:
    """A home folder may be shared by machines whose processors differ."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else [platform.processor()]
    return next((line for line in lines if line.startswith(("flags", "Features"))), lines[0] if lines else "")


def _compile(compiler: str, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        command = [compiler, *FLAGS, "-o", str(made), str(SOURCE / "step.cpp")]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise NotCompiled(f"{compiler} took more than {TIMEOUT_S} s") from error
        if done.returncode:
            raise NotCompiled(f"{compiler} ended with {done.returncode}: {done.stderr[-500:]}")
        made.replace(path)
