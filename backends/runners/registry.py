"""Which code runs a model's steps on CPU: our compiled step where it takes the model, else torch's operations."""

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
    """On as many threads as torch has now. Raises ValueError where the compiled step is `required` and does not take it."""
    problems = step_problems(model) if library is not None else []
    if required and problems:
        raise ValueError(f"--step compiled does not take this model: {'; '.join(problems)}")
    if library is not None and isinstance(model, Llama) and not problems:
        return CompiledRunner(library, model, kv, threads=torch.get_num_threads())
    return TorchRunner(model, kv, dtype=dtype, device="cpu")
