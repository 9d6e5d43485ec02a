from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.request import Message
from gateway.routing.quality import Artefact, ArtefactError, Hashed, QualityModel, interpolated, top_only
from gateway.training.calibrate import auc, isotonic
from gateway.training.grade import grade
from gateway.training.outcome import Outcome, TrainingError, as_good
from gateway.training.train import train
from tests.gateway.routing.conftest import Labelled

TIERS = ("small", "large")


@pytest.fixture(scope="module")
def artefact(training_rows: list[Outcome]) -> Artefact:
    return train(training_rows, tiers=TIERS, command="headway router train x.jsonl")


def test_quality_model_separates_easy_from_hard_on_held_out_rows(artefact: Artefact, held_out: tuple[Labelled, ...]) -> None:
    found = grade(artefact, [row for _, row in held_out])["small"]
    assert found.metrics.auc > 0.85
    assert found.metrics.log_loss < 0.75 * found.metrics.log_loss_of_base_rate
    assert found.metrics.ece < 0.06
    model = QualityModel(artefact)
    estimates = [(one.level, model.judge(row.messages, row.tools)["small"]) for one, row in held_out]
    by_level = [float(np.mean([chance for at, chance in estimates if at == level])) for level in (1, 2, 3, 4)]
    assert by_level == sorted(by_level, reverse=True)
    assert by_level[1] > 0.8 > 0.65 > by_level[2]


def test_quality_bar_keeps_accuracy_and_saves_cost(artefact: Artefact, held_out: tuple[Labelled, ...]) -> None:
    bars = grade(artefact, [row for _, row in held_out])["small"].bars
    assert [bar.share for bar in bars] == sorted((bar.share for bar in bars), reverse=True)
    assert max(bar.share for bar in bars if bar.kept >= 0.97) > 0.4


def test_artefact_is_small_and_holds_its_provenance(artefact: Artefact, training_rows: list[Outcome]) -> None:
    assert len(msgspec.json.encode(artefact)) < 300_000
    assert artefact.rows == len(training_rows)
    assert artefact.data.startswith("blake2b-16:")
    assert artefact.command == "headway router train x.jsonl"
    small = artefact.tiers["small"]
    assert small.reliability
    assert small.metrics is not None
    assert list(small.points) == sorted(small.points)
    assert [chance for _, chance in small.points] == sorted(chance for _, chance in small.points)


def test_the_same_outcomes_give_the_same_artefact(training_rows: list[Outcome]) -> None:
    first, second = (train(training_rows[:200], tiers=TIERS) for _ in range(2))
    assert msgspec.json.encode(first) == msgspec.json.encode(second)


def test_an_artefact_survives_its_file(artefact: Artefact, tmp_path: Path, training_rows: list[Outcome]) -> None:
    (tmp_path / "quality.json").write_bytes(msgspec.json.encode(artefact))
    loaded, row = QualityModel.load(tmp_path / "quality.json"), training_rows[0]
    assert loaded.judge(row.messages, row.tools) == QualityModel(artefact).judge(row.messages, row.tools)
    assert loaded.judge(row.messages, row.tools)["large"] == 1.0


@pytest.mark.parametrize("changes", [{"version": 99}, {"features": {"version": 99, "bits": 15}}, {"tiers": {"small": 3}}])
def test_file_that_is_no_artefact_is_refused_by_name(artefact: Artefact, tmp_path: Path, changes: dict[str, object]) -> None:
    raw = msgspec.to_builtins(artefact) | changes
    (tmp_path / "quality.json").write_bytes(msgspec.json.encode(raw))
    with pytest.raises(ArtefactError, match=r"quality\.json"):
        QualityModel.load(tmp_path / "quality.json")


def test_damaged_weights_are_refused(artefact: Artefact) -> None:
    model = msgspec.structs.replace(artefact.tiers["small"], structure=Hashed(scale=1.0, weights="AAAA"))
    with pytest.raises(ArtefactError, match="damaged"):
        QualityModel(msgspec.structs.replace(artefact, tiers={"small": model}))


def test_three_tiers_are_each_compared_with_the_top(training_rows: list[Outcome]) -> None:
    rows = [
        msgspec.structs.replace(row, outcomes={**row.outcomes, "medium": row.outcomes["small"] or index % 2 == 0})
        for index, row in enumerate(training_rows)
    ]
    artefact = train(rows, tiers=("small", "medium", "large"))
    row = rows[0]
    estimates = QualityModel(artefact).judge(row.messages, row.tools)
    assert set(estimates) == {"small", "medium", "large"}


def test_a_tier_is_as_good_when_the_top_one_is_wrong_too() -> None:
    def row(small: bool, large: bool) -> Outcome:
        return Outcome(messages=(), outcomes={"small": small, "large": large})

    assert [as_good(row(s, t), "small", "large") for s, t in ((True, True), (True, False), (False, False))] == [True] * 3
    assert not as_good(row(False, True), "small", "large")


def test_outcomes_that_cannot_be_trained_on_are_an_error_with_the_reason(training_rows: list[Outcome]) -> None:
    with pytest.raises(TrainingError, match="at least 10 outcomes"):
        train(training_rows[:3], tiers=TIERS)
    with pytest.raises(TrainingError, match="outcome 1 has no label of medium"):
        train(training_rows, tiers=("small", "medium", "large"))
    with pytest.raises(TrainingError, match="two tiers"):
        train(training_rows, tiers=("small",))


@pytest.mark.parametrize("right", [True, False])
def test_outcomes_that_are_all_alike_still_give_a_model(right: bool) -> None:
    rows = [
        Outcome(messages=(Message(role="user", content=f"q {i}"),), outcomes={"small": right, "large": True}) for i in range(80)
    ]
    estimate = QualityModel(train(rows, tiers=TIERS)).judge(rows[0].messages, ())["small"]
    assert 0 <= estimate <= 1
    assert (estimate > 0.5) == right


def test_without_a_router_only_the_best_offered_tier_is_good_enough() -> None:
    quality = top_only(("s", "m", "l"))
    assert quality["l"] == 1.0
    assert quality["s"] < quality["m"] < 1e-3


@given(st.lists(st.tuples(st.floats(-9, 9), st.booleans()), min_size=1, max_size=300))
def test_isotonic_points_rise_and_are_probabilities(rows: list[tuple[float, bool]]) -> None:
    points = isotonic(np.array([x for x, _ in rows]), np.array([float(y) for _, y in rows]))
    xs, ys = [x for x, _ in points], [y for _, y in points]
    assert xs == sorted(set(xs))
    assert ys == sorted(ys)
    assert all(0 <= y <= 1 for y in ys)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=9, unique=True), st.lists(st.floats(0, 1), min_size=9), st.floats(-9, 9))
def test_interpolation_agrees_with_numpys(xs: list[float], ys: list[float], x: float) -> None:
    xs, ys = sorted(xs), sorted(ys)[: len(xs)]
    assert interpolated(x, xs, ys) == pytest.approx(float(np.interp(x, xs, ys)), abs=1e-9)


def test_auc_is_the_chance_of_the_right_order() -> None:
    labels = np.array([1.0, 0.0, 1.0, 0.0])
    assert auc(np.array([0.9, 0.1, 0.8, 0.2]), labels) == 1.0
    assert auc(np.array([0.5, 0.5, 0.5, 0.5]), labels) == 0.5
    assert auc(np.array([0.1, 0.9, 0.2, 0.8]), labels) == 0.0
    assert auc(np.array([0.1, 0.9]), np.array([1.0, 1.0])) == 0.5
