"""The lock files are complete, hold for every machine, and say nothing of the one that wrote them."""

import re
import tomllib
from pathlib import Path

import pytest

from requirements.lock import APART, HEADER, LOCKS, without_torch

HERE = Path(__file__).parents[1]
ENTRY = re.compile(r"([a-z0-9-]+)==(\S+)(?: ; .+?)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)")


def text_of(name: str) -> str:
    return (HERE / "requirements" / name).read_text()


def versions(name: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for package, version, _ in ENTRY.findall(text_of(name)):
        found.setdefault(package, set()).add(version)
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_lock_file_holds_only_versions_and_hashes(name: str) -> None:
    text = text_of(name)
    assert text.startswith(HEADER)
    assert ENTRY.sub("", text.removeprefix(HEADER)) == ""


@pytest.mark.parametrize("name", ["dev.txt", "run.txt", "otlp.txt"])
def test_lock_file_leaves_out_torch_and_gpu_packages(name: str) -> None:
    assert not [line for line in text_of(name).splitlines() if line.startswith(APART)]


def test_run_and_dev_locks_have_equal_versions() -> None:
    tested = versions("dev.txt")
    for name in ("run.txt", "otlp.txt"):
        assert {package: known for package, known in versions(name).items() if tested.get(package, known) != known} == {}
    assert versions("run.txt").keys() <= tested.keys()


def test_every_requirement_of_the_package_is_locked() -> None:
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for lock, named in (("run.txt", ["engine", "demo"]), ("dev.txt", ["engine", "demo", "dev"]), ("otlp.txt", ["otlp"])):
        wanted = [*project["dependencies"], *(one for extra in named for one in extras[extra])]
        names = {re.split(r"[\[<>=; ]", one)[0].lower() for one in wanted} - {"headway", "torch", "triton"}
        assert names <= versions(lock).keys()


def test_entry_of_a_package_installed_apart_is_removed_with_its_hashes() -> None:
    lock = (
        "a==1 \\\n    --hash=sha256:0\nnvidia-x==1 \\\n    --hash=sha256:1\ntorch==2 \\\n    --hash=sha256:2\ntorchvision==3\n"
    )
    assert without_torch(lock) == "a==1 \\\n    --hash=sha256:0\ntorchvision==3\n"
