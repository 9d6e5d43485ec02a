"""Runs every small case and prints its error as JSON: on a GPU where there is one, else in Triton's interpreter.

The interpreter must be asked for before Triton is imported, so this is a process of its own.
"""

import json
import os
import shutil

if shutil.which("nvidia-smi") is None:
    os.environ["TRITON_INTERPRET"] = "1"

import torch

from kernels.cases import CASES


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    errors = {}
    for case in CASES:
        if not case.large:
            try:
                errors[f"{case.kernel}/{case.name}"] = case.error(torch.float32, device)
            except Exception as error:
                errors[f"{case.kernel}/{case.name}"] = f"{type(error).__name__}: {error}"
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
