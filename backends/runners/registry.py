"""Choice of the runner of a model on CPU: the compiled step if it supports the model, else torch operations."""

import torch

from backends.models.llama import Llama
from backends.models.loader import CausalModel
from backends.models.paged_kv import PagedKV
from backends.runners.compiled_runner import CompiledRunner, step_problems
from backends.runners.native_library import Library
from backends.runners.torch_runner import TorchRunner


def cpu_runner(
    model: CausalModel, kv: PagedKV, *, dtype: torch.dtype, library: Library | None = None, required: bool = False
) -> TorchRunner | CompiledRunner:
    """Return a runner with torch's current number of threads. Raise ValueError if a `required` compiled step lacks support."""
    problems = step_problems(model) if library is not None else []
    if required and problems:
        raise ValueError(f"--step compiled does not take this model: {'; '.join(problems)}")
    if library is not None and isinstance(model, Llama) and not problems:
        return CompiledRunner(library, model, kv, threads=torch.get_num_threads())
    return TorchRunner(model, kv, dtype=dtype, device="cpu")
