"""An evaluation finds nothing where nothing was lost, and something where much was."""

from pathlib import Path

import pytest

from backends.evaluate import evaluate, parser, shown
from backends.quant.weight import UnsupportedCheckpoint
from gateway.cli import main
from tests.backends.conftest import MakeCheckpoint


def test_report_shows_the_accuracy_of_a_quantization(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    directory, text = make_checkpoint(), tmp_path / "text"
    text.write_text("the quick brown fox jumps over the lazy dog " * 20)
    for linear in ("float32", "int4"):
        command = [str(directory), "--against", str(directory), "--linear", linear, "--text", str(text), "--count", "8"]
        report = evaluate(parser().parse_args(command))
        assert report["tokens"] > 100 and (abs(report["perplexity_delta"]) < 1e-6) == (linear == "float32")
        assert (report["greedy_agreement"] == 1.0) == (linear == "float32")
        assert "greedy agreement" in shown(report)


def test_models_of_two_tokenizers_are_not_compared(make_checkpoint: MakeCheckpoint) -> None:
    command = [str(make_checkpoint()), "--against", str(make_checkpoint(vocab_size=336))]
    with pytest.raises(UnsupportedCheckpoint, match="only models of one tokenizer"):
        evaluate(parser().parse_args(command))


def test_the_command_says_what_is_wrong(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tmp_path), "--against", str(tmp_path), "--size", "1"]) == 1
    assert "headway evaluate:" in capfd.readouterr().err
