"""Every kernel computes what its twin in plain torch computes, in float32, on every small case."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.cases import CASES, KERNELS, Case
from kernels.reference import gumbel_sample


@pytest.fixture(scope="module")
def errors() -> dict[str, float | str]:
    found: dict[str, float | str] = said_by("tests.kernels.errors")
    return found


def said_by(module: str) -> Any:
    command = [sys.executable, "-m", module]
    ran = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", [case for case in CASES if not case.large], ids=lambda case: f"{case.kernel}/{case.name}")
def test_kernel_equals_its_reference(case: Case, errors: dict[str, float | str]) -> None:
    error = errors[f"{case.kernel}/{case.name}"]
    assert isinstance(error, float) and error <= case.tolerance, error


@pytest.mark.timeout(300)
def test_models_give_equal_text_on_kernels_and_torch() -> None:
    same = said_by("tests.kernels.forward")
    assert len(same) == 2 and all(same.values()), same


def test_every_kernel_has_cases_and_a_shape_of_production() -> None:
    for kernel in KERNELS:
        assert {case.large for case in CASES if case.kernel == kernel} == {True, False}


def test_draws_follow_the_softmax_and_depend_on_seed_and_position_alone() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    rows = 20_000
    seeds, positions = torch.arange(rows) * 7919, torch.arange(rows) % 50
    said = gumbel_sample(logits.expand(rows, -1), torch.full((rows,), 0.7), seeds, positions)
    shares = torch.bincount(said, minlength=4) / rows
    assert (shares - torch.softmax(logits / 0.7, -1)).abs().max() < 0.012
    again = gumbel_sample(logits.expand(3, -1), torch.full((3,), 0.7), seeds[100:103], positions[100:103])
    assert again.tolist() == said[100:103].tolist()
