"""Which code runs a model's steps on CPU: our compiled step where it takes the model, else torch's operations."""

import torch

from backends.attention import PagedKV
from backends.compiled import Library
from backends.llama import Llama
from backends.runner import Model, ModelRunner
from backends.step_runner import StepRunner, step_problems


def cpu_runner(
    model: Model, kv: PagedKV, *, dtype: torch.dtype, library: Library | None = None, required: bool = False
) -> ModelRunner | StepRunner:
    """On as many threads as torch has now. Raises ValueError where the compiled step is `required` and does not take it."""
    problems = step_problems(model) if library is not None else []
    if required and problems:
        raise ValueError(f"--step compiled does not take this model: {'; '.join(problems)}")
    if library is not None and isinstance(model, Llama) and not problems:
        return StepRunner(library, model, kv, threads=torch.get_num_threads())
    return ModelRunner(model, kv, dtype=dtype, device="cpu")
