"""Which torch a machine takes: what the user names, else a CPU build where there is no NVIDIA GPU and one is to be had."""

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from requirements import install_torch
from requirements.install_torch import CPU_INDEX, Choice, bounds_of, choices, installed, pins

HERE = Path(__file__).parents[1]


def tried(*, asked: str = "", system: str = "Linux", has_gpu: bool = False, reachable: bool = True) -> list[Choice]:
    told = {"asked": asked, "system": system, "has_gpu": has_gpu, "reachable": lambda: reachable}
    return list(choices("torch==2.13.0", "torch<2.14", **told))  # type: ignore[arg-type]


def test_torch_named_by_the_user_is_installed_within_the_bounds() -> None:
    assert [one.arguments for one in tried(asked="torch --index-url URL", has_gpu=True)] == [
        ("torch", "--index-url", "URL", "torch<2.14")
    ]
    assert tried(asked="'torch>=2.12'")[0].arguments == ("torch>=2.12", "torch<2.14")


def test_gpu_machine_gets_the_plain_release_with_its_size() -> None:
    (only,) = tried(has_gpu=True)
    assert only.arguments == ("torch==2.13.0",)
    assert "GB" in only.says and "make run TORCH=" in only.says


def test_without_a_gpu_cpu_builds_are_tried_first() -> None:
    ours, public, plain = tried()
    assert ours.arguments == ("torch==2.13.0+cpu",)
    assert public.arguments == ("torch==2.13.0+cpu", "--index-url", CPU_INDEX)
    assert plain.arguments == ("torch==2.13.0",)
    assert [one.quiet for one in (ours, public, plain)] == [True, True, False]
    assert "GB" in plain.says and "make run TORCH=" in plain.says
    assert [one.arguments for one in tried(reachable=False)] == [ours.arguments, plain.arguments]


def test_cpu_build_from_pips_index_needs_no_other_index() -> None:
    def reachable() -> bool:
        raise AssertionError("asked")

    lazy = choices("torch==2.13.0", "torch<2.14", asked="", system="Linux", has_gpu=False, reachable=reachable)
    assert next(lazy).arguments == ("torch==2.13.0+cpu",)


def test_elsewhere_the_plain_release_is_a_cpu_build() -> None:
    (only,) = tried(system="Darwin")
    assert only.arguments == ("torch==2.13.0",) and "GB" not in only.says


def test_each_choice_is_one_pip_call_and_is_announced(capsys: pytest.CaptureFixture[str]) -> None:
    calls = []

    def run(command: list[str], **_: Any) -> Any:
        assert "headway: a CPU build" in capsys.readouterr().err
        calls.append(command)
        return SimpleNamespace(returncode=1)

    assert not installed(Choice(("torch==1+cpu",), "a CPU build"), run)
    assert calls[0][1:4] == ["-m", "pip", "install"] and calls[0][-1] == "torch==1+cpu"


def test_failure_of_every_choice_is_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    monkeypatch.setattr(install_torch, "gpu_is_here", lambda: False)
    monkeypatch.setattr(install_torch, "cpu_index_answers", lambda: False)
    monkeypatch.setattr(install_torch, "installed", lambda choice: False)
    assert install_torch.main("") == 1
    assert "make run TORCH=" in capsys.readouterr().err


@pytest.mark.parametrize(("code", "said", "here"), [(0, "GPU 0: H200 (UUID: x)\n", True), (0, "", False), (9, "failed", False)])
def test_gpu_is_detected_by_its_driver(monkeypatch: pytest.MonkeyPatch, code: int, said: str, here: bool) -> None:
    monkeypatch.setattr(install_torch.Path, "exists", lambda path: False)
    monkeypatch.setattr(install_torch.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(install_torch.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=code, stdout=said))
    assert install_torch.gpu_is_here() is here


def test_the_pins_are_within_what_the_package_allows() -> None:
    pin = pins((HERE / "requirements/torch.txt").read_text())
    bounds = bounds_of((HERE / "pyproject.toml").read_text())
    assert sorted(pin) == ["torch", "triton"] and pin["torch"].startswith("torch==")
    low, high = (tuple(map(int, bound.strip("torch>=<").split("."))) for bound in bounds.split(","))
    assert low <= tuple(map(int, pin["torch"].removeprefix("torch==").split("."))) < high
