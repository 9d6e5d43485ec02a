"""`headway bench engine` measures every cell that was asked for, and says what does not fit."""

import json
from pathlib import Path

import pytest

from gateway.cli import main
from tests.backends.conftest import MakeCheckpoint


def test_every_cell_is_measured_and_written(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, model = tmp_path / "found.json", str(make_checkpoint())
    options = ["--batches", "1,3", "--contexts", "8,40", "--tokens", "4", "--rounds", "1", "--out", str(out)]
    assert main(["bench", "engine", model, *options]) == 0
    found = json.loads(out.read_text())
    cells = {(cell["batch"], cell["context"]): cell for cell in found["cells"]}
    assert set(cells) == {(1, 8), (1, 40), (3, 8), (3, 40)} and found["path"] == "native"
    assert all(min(cell["prefill_tokens_per_s"], cell["decode_tokens_per_s"]) > 0 for cell in cells.values())
    assert "prefill tokens/s" in capfd.readouterr().out
    assert main(["bench", "engine", model, "--contexts", "5000"]) == 1
    assert "choose shorter --contexts" in capfd.readouterr().err
