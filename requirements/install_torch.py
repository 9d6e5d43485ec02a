"""Installs torch for the Python that runs this: the build that the user names, else the one that suits the machine.

    python requirements/install_torch.py ["what pip is to install"]

With an NVIDIA GPU that is the plain release. Without one it is a CPU build: of the package index that pip is set up with, or of
PyTorch's own. The plain release is the last resort, and its size is said before it is downloaded.
"""

import platform
import shlex
import shutil
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
REACHED_WITHIN_S = 4
GIGABYTES = 2.7
"""torch 2.13.0 for CUDA 13 on x86-64 Linux, with triton and NVIDIA's libraries, as the files lie on PyPI."""


class Choice(NamedTuple):
    """`arguments` are pip's; `says` is told before they are tried. After a `quiet` one that fails the next is tried."""

    arguments: tuple[str, ...]
    says: str
    quiet: bool = False


def choices(
    torch: str, bounds: str, *, asked: str, system: str, has_gpu: bool, reachable: Callable[[], bool]
) -> Iterator[Choice]:
    """What to try, the best first. `torch` is such as `torch==2.13.0`, `bounds` is what pyproject.toml allows."""
    big = f"up to {GIGABYTES} GB are downloaded"
    if asked:
        yield Choice((*shlex.split(asked), bounds), f"torch as asked for: {asked}")
    elif system != "Linux":  # its plain release is a CPU build
        yield Choice((torch,), torch)
    elif has_gpu:
        yield Choice((torch,), f"{torch} for the NVIDIA GPU: {big}; to take another build: make run TORCH=...")
    else:
        cpu = f"{torch}+cpu"
        yield Choice((cpu,), f"no NVIDIA GPU: {cpu} of pip's index", quiet=True)
        if reachable():
            yield Choice((cpu, "--index-url", CPU_INDEX), f"pip's index has no {cpu}: from {CPU_INDEX}", quiet=True)
        hint = 'to take a CPU build: make run TORCH="torch --index-url URL"'
        yield Choice((torch,), f"no CPU build of torch is to be had: {big} if {torch} is a CUDA build; {hint}")


def installed(choice: Choice, run: Callable[..., "subprocess.CompletedProcess[str]"] = subprocess.run) -> bool:
    print(f"headway: {choice.says}", file=sys.stderr, flush=True)
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *choice.arguments]
    return run(pip, stderr=subprocess.DEVNULL if choice.quiet else None, text=True).returncode == 0


def pins(text: str) -> dict[str, str]:
    """Versions by name of a requirements file such as torch.txt."""
    lines = (line.partition(";")[0].strip() for line in text.splitlines() if "==" in line and not line.startswith("#"))
    return {line.partition("==")[0]: line for line in lines}


def bounds_of(pyproject: str) -> str:
    engine: list[str] = tomllib.loads(pyproject)["project"]["optional-dependencies"]["engine"]
    return next(one for one in engine if one.startswith("torch>"))


def gpu_is_here() -> bool:
    if Path("/proc/driver/nvidia/version").exists():
        return True
    if not (program := shutil.which("nvidia-smi")):
        return False
    try:
        listed = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU 0" in listed.stdout


def cpu_index_answers() -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{CPU_INDEX}/torch/", method="HEAD"), timeout=REACHED_WITHIN_S):
            return True
    except (OSError, ValueError):
        return False


def main(asked: str) -> int:
    pin = pins((HERE / "torch.txt").read_text())
    bounds = bounds_of((HERE.parent / "pyproject.toml").read_text())
    system = platform.system()
    tried = choices(pin["torch"], bounds, asked=asked, system=system, has_gpu=gpu_is_here(), reachable=cpu_index_answers)
    if not any(installed(choice) for choice in tried):
        print("headway: torch could not be installed: name a build with make run TORCH=...", file=sys.stderr)
        return 1
    if system == "Linux" and not has_triton():  # a CUDA build has brought its own
        return 0 if installed(Choice((pin["triton"],), f"{pin['triton']}, for the kernels")) else 1
    return 0


def has_triton() -> bool:
    try:
        return bool(version("triton"))
    except PackageNotFoundError:
        return False


if __name__ == "__main__":
    sys.exit(main(" ".join(sys.argv[1:])))
