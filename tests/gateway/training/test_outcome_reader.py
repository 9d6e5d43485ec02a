import json
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.routing.quality import QualityModel
from gateway.training.outcome import TrainingError
from gateway.training.outcome_reader import read_outcomes


def written(folder: Path, *lines: object) -> Path:
    path = folder / "outcomes.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return path


def test_lines_of_one_model_are_put_together_by_question(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"prompt": "a", "model": "small", "right": False, "confidence": 0.4},
        {"prompt": "b", "model": "small", "score": 0.5},
        {"prompt": "a", "model": "large", "right": True},
        {"messages": [{"role": "user", "content": "c"}], "outcomes": {"small": True, "large": True}},
    )
    found = {one.question: one for one in read_outcomes(path)}
    assert found["a"].outcomes == {"small": 0.0, "large": 1.0}
    assert found["a"].confidence == {"small": 0.4}
    assert found["b"].outcomes == {"small": 0.5}
    assert found["c"].outcomes == {"small": 1.0, "large": 1.0}


@pytest.mark.parametrize("line", [{"model": "m", "right": True}, {"prompt": "a"}, {"prompt": "a", "model": "m"}, {"prompt": 3}])
def test_empty_line_of_outcomes_is_named(tmp_path: Path, line: dict[str, object]) -> None:
    with pytest.raises(TrainingError, match="line 1"):
        list(read_outcomes(written(tmp_path, line)))


def test_train_grade_and_escalation_work_on_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        {
            "prompt": f"What is {i} + {i}?" if i % 2 else f"Prove the theorem number {i} of this book.",
            "outcomes": {"small": bool(i % 2), "large": True},
            "confidence": {"small": 0.9 if i % 2 else 0.3},
        }
        for i in range(80)
    ]
    outcomes, artefact = str(written(tmp_path, *lines)), str(tmp_path / "quality.json")
    assert main(["router", "train", outcomes, "--tiers", "small,large", "--out", artefact], {}) == 0
    assert main(["router", "grade", outcomes, "--artefact", artefact], {}) == 0
    assert main(["router", "escalation", outcomes, "--artefact", artefact, "--keep", "1"], {}) == 0
    fitted = QualityModel.load(Path(artefact)).escalations()["small"]
    assert 0.0 < fitted.bar < 1.0
    assert (fitted.catch, fitted.alarm) == (1.0, 0.0)
    assert "after 8 tokens" in capsys.readouterr().out
    assert main(["router", "escalation", outcomes, "--artefact", artefact, "--tier", "medium"], {}) == 1
