import os
from pathlib import Path

import pytest

from gateway.policy.load import PolicyError, load_policy
from gateway.settings import FOLDERS
from tests.builders import policy_text

SECRET = "root:$6$salt$hash:19000:0:99999:7:::"


def problems(folder: Path, include: str, env: dict[str, str] | None = None) -> str:
    file = folder / "policy.yaml"
    file.write_text(policy_text("  w: {model: pico, device: cpu}", more=f"include: ['{include}']"))
    with pytest.raises(PolicyError) as raised:
        load_policy(file, env or {})
    return str(raised.value)


@pytest.mark.parametrize("include", ["/dev/zero", "/etc/passwd", "../outside.yaml", "/proc/self/environ"])
def test_file_outside_of_the_folder_is_refused_unread(tmp_path: Path, include: str) -> None:
    (tmp_path / "outside.yaml").write_text(SECRET)
    (tmp_path / "inner").mkdir()
    said = problems(tmp_path / "inner", include)
    assert "outside of the policy's folder" in said and FOLDERS in said and "salt" not in said


def test_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "link.yaml").symlink_to(tmp_path / "secret")
    assert "outside of the policy's folder" in problems(tmp_path / "inner", "link.yaml")


def test_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is no regular file" in problems(tmp_path, "pipe")


def test_device_in_an_allowed_folder_is_refused(tmp_path: Path) -> None:
    assert "is no regular file" in problems(tmp_path, "/dev/zero", {FOLDERS: "/dev"})


def test_sparse_file_is_refused_by_its_size(tmp_path: Path) -> None:
    with (tmp_path / "large.yaml").open("wb") as file:
        file.truncate(5_000_000_000)
    assert "is larger than 4,000,000 bytes" in problems(tmp_path, "large.yaml")


@pytest.mark.parametrize("content", [SECRET, f"{SECRET}\n- x", f"{{{SECRET}", f"user: {SECRET}", f"@{SECRET}", f"*{SECRET}"])
def test_content_of_a_file_that_is_no_policy_is_not_quoted(tmp_path: Path, content: str) -> None:
    (tmp_path / "other.yaml").write_text(content)
    said = problems(tmp_path, "other.yaml")
    assert "hash" not in said and "19000" not in said and "other.yaml" in said


def test_folders_of_the_flag_may_be_included(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "tenants.yaml").write_text("tenants: {red: {}}\n")
    file = tmp_path / "inner" / "policy.yaml"
    file.write_text(policy_text("  w: {model: pico, device: cpu}", more="include: [../shared/tenants.yaml]"))
    env = {FOLDERS: f"/nowhere{os.pathsep}{tmp_path}/shared"}
    assert "red" in load_policy(file, env).tenants
