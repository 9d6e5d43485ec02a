"""Builds llama.cpp from the sdist of llama-cpp-python for this machine's processor, once, in a cache folder.

`python -m benchmarks.llama_cpp` only builds it (it takes long) and prints its path.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.report import ROOT, progress

RELEASE = "0.3.36"
"""Release of llama-cpp-python on PyPI, whose sdist contains llama.cpp's source."""
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "headway" / "llama_cpp"
TOOLS = ("llama-bench", "llama-batched-bench", "llama-quantize")
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_NATIVE": "ON",
    "BUILD_SHARED_LIBS": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_SERVER": "OFF",
    "LLAMA_BUILD_APP": "OFF",
}


class LlamaCpp(NamedTuple):
    """An installed peer. `programs` holds TOOLS, `python` has the `gguf` package of PyPI, `release` is that of
    llama-cpp-python."""

    programs: Path
    python: Path
    release: str = RELEASE

    def write(self, directory: Path) -> dict[str, Path]:
        """Write the model in `directory` as F16 and Q8_0. Keys are llama-bench's names of the file types."""
        full, small = directory / "f16.gguf", directory / "q8_0.gguf"
        _run([self.python, ROOT / "benchmarks" / "gguf_file.py", directory, full])
        _run([self.programs / "llama-quantize", full, small, "Q8_0"])
        return {"F16": full, "Q8_0": small}

    def bench(self, file: Path, *, prefill: int, decode: int, threads: int) -> list[dict[str, Any]]:
        """Return llama-bench's rows: one for a prompt of `prefill` tokens, one for `decode` tokens of one sequence."""
        sizes = ["-p", prefill, "-n", decode, "-t", threads, "-r", 1, "-o", "json"]
        rows: list[dict[str, Any]] = json.loads(_run([self.programs / "llama-bench", "-m", file, *sizes]))
        return rows

    def batched(self, file: Path, *, prompt: int, decode: int, batch: int, threads: int) -> dict[str, Any]:
        """Return llama-batched-bench's row for `batch` sequences at once."""
        sizes = ["-npp", prompt, "-ntg", decode, "-npl", batch, "-t", threads, "-tb", threads, "-c", 4096]
        said = _run([self.programs / "llama-batched-bench", "-m", file, *sizes, "--output-format", "jsonl"])
        row: dict[str, Any] = json.loads([line for line in said.splitlines() if line.startswith("{")][-1])
        return row


def prepare(folder: Path = CACHE, *, jobs: int = 2) -> LlamaCpp:
    """Build and install it unless it exists. Needs cmake, a C++ compiler and, the first time, PyPI."""
    built = LlamaCpp(folder / f"build-{RELEASE}" / "bin", folder / "venv" / "bin" / "python")
    if not built.python.exists():
        progress(f"installing gguf into {folder / 'venv'}")
        _run([sys.executable, "-m", "venv", folder / "venv"])
        _run([built.python, "-m", "pip", "install", "-q", "gguf"])
    if not all((built.programs / tool).exists() for tool in TOOLS):
        progress(f"building llama.cpp in {folder}, which takes long")
        _build(folder, built, jobs)
    return built


def _build(folder: Path, built: LlamaCpp, jobs: int) -> None:
    fetched = folder / f"llama_cpp_python-{RELEASE}"
    if not fetched.exists():
        only = ["--no-deps", "--no-binary", "llama-cpp-python", f"llama-cpp-python=={RELEASE}"]
        _run([built.python, "-m", "pip", "download", "-q", "-d", folder / "sdist", *only])
        with tarfile.open(folder / "sdist" / f"{fetched.name}.tar.gz") as sdist:
            sdist.extractall(folder, filter="data")
    source, build = fetched / "vendor" / "llama.cpp", built.programs.parent
    _run(["cmake", "-S", source, "-B", build, *(f"-D{name}={value}" for name, value in OPTIONS.items())])
    # Output goes to the terminal: a silent build of half an hour looks stuck.
    command = ["cmake", "--build", build, "--target", *TOOLS, "-j", str(jobs)]
    subprocess.run([str(part) for part in command], stdout=sys.stderr, check=True)


def _run(command: list[Any]) -> str:
    """Return stdout. Raises RuntimeError with the end of stderr on failure."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {(done.stderr or done.stdout)[-1000:]}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=CACHE)
    parser.add_argument("--jobs", type=int, default=2, help="compilers at once")
    args = parser.parse_args()
    print(prepare(args.folder, jobs=args.jobs).programs)


if __name__ == "__main__":
    main()
