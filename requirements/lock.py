"""Renews the lock files beside this file: `make lock`. They hold for every platform and every Python of pyproject.toml.

torch and what belongs to a machine's GPU is resolved with the rest, so that all fits together, and then left out:
install_torch.py installs it apart.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
OLDEST_PYTHON = "3.11"
BUILD = ["pyproject.toml", "requirements/build.in"]
TORCH = ["--constraint", "requirements/torch.txt"]
AS_DEV = ["--constraint", "requirements/dev.txt"]
# dev.txt comes first: run.txt and otlp.txt are parts of it, or added to it, at the same versions.
LOCKS = {
    "dev.txt": [*BUILD, "--extra", "dev", *TORCH],
    "run.txt": [*BUILD, "--extra", "engine", "--extra", "demo", *TORCH, *AS_DEV],
    "otlp.txt": ["pyproject.toml", "--extra", "otlp", *AS_DEV],
    "frameworks.txt": ["requirements/frameworks.in"],
    "phoenix.txt": ["requirements/phoenix.in"],
    "wheel.txt": ["requirements/wheel.in"],
}
HEADER = "# Written by `make lock`: change pyproject.toml or requirements/*.in instead.\n"
APART = ("torch==", "triton==", "nvidia-", "cuda-")


def without_torch(lock: str) -> str:
    """A lock file's text without the entries of what is installed apart; an entry's hashes stand indented below it."""
    kept, keep = [], True
    for line in lock.splitlines(keepends=True):
        if not line.startswith(" "):
            keep = not line.startswith(APART)
        if keep:
            kept.append(line)
    return "".join(kept)


def main(uv: str) -> None:
    options = ["--universal", "--python-version", OLDEST_PYTHON, "--generate-hashes", "--no-annotate", "--no-header", "--quiet"]
    for name, inputs in LOCKS.items():
        print(f"headway: requirements/{name}", file=sys.stderr)
        command = [uv, "pip", "compile", *options, *inputs]
        done = subprocess.run(command, cwd=HERE.parent, check=True, stdout=subprocess.PIPE, text=True)
        (HERE / name).write_text(HEADER + without_torch(done.stdout))


if __name__ == "__main__":
    main(sys.argv[1])
