"""Studies side by side, and what they are measured against."""

import json

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from personalization.data.demo.world import make_world
from personalization.data.lamp import write_dataset
from personalization.deployment import Deployment
from personalization.errors import DataError, UsageError
from studies.results import taste_profile
from studies.runner import run_study
from studies.study import open_study
from studies.verdict.comparison import compare, comparison_figure
from studies.verdict.promotion import promote
from studies.verdict.references import against_references, reference_answers, references
from tracking.significance import holm, paired

pytestmark = pytest.mark.usefixtures("kept_scores")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def two(home, spec_of, no_results):
    """The same two studies in every test: run once, then only opened."""
    specs = [
        spec_of(name="plain", constraints={}, trials=3),
        spec_of(name="similar", constraints={}, trials=3, objective="retrieval", warm_start=True, space={"k": [0, 2]}),
    ]
    for spec in specs:
        if not (home / spec.name).exists():
            run_study(spec, home / spec.name)
    return [open_study(spec, home / spec.name) for spec in specs]


def test_gains_are_over_the_first_on_the_same_select_users(two):
    result = compare(two)
    first, second = result["rows"]
    assert json.loads(json.dumps(result)) == result
    assert (first["study"], second["study"], result["against"]) == ("plain", "similar", "plain")
    assert first["gain"] is None
    gain = second["gain"]
    assert gain["delta"] == pytest.approx(second["accuracy"] - first["accuracy"])
    assert gain["users_better"] + gain["users_worse"] + gain["users_equal"] == result["users"] == 8
    assert gain["p_corrected"] == gain["p_value"]
    assert first["ci95"][0] <= first["accuracy"] <= first["ci95"][1]
    assert gain["parts"]["by_question"]["gain"]["delta"] == pytest.approx(gain["delta"])
    assert {"gain", "general", "personal"} == set(gain["parts"]["by_user"])
    assert all(row["cost_ms"] > 0 and row["training_s"] > 0 and row["user_bytes"] == 0 for row in result["rows"])
    assert comparison_figure(result).startswith(b"\x89PNG")


def test_a_study_against_itself_gains_nothing(two):
    gain = compare([two[0], two[0]])["rows"][1]["gain"]
    assert (gain["delta"], gain["p_corrected"], gain["users_better"]) == (0, 1.0, 0)


def test_studies_of_other_users_are_not_compared(two, tmp_path, spec_of):
    write_dataset(tmp_path / "other", "o", make_world(9, users=30, questions_per_user=2).dataset)
    spec = spec_of(name="elsewhere", constraints={}, trials=1, data={"path": str(tmp_path / "other")})
    run_study(spec, tmp_path)
    with pytest.raises(UsageError, match="have other select users"):
        compare([two[0], open_study(spec, tmp_path)])


def test_a_study_without_a_feasible_trial_is_named(two, tmp_path, spec_of):
    spec = spec_of(name="none", constraints={"entropy": ">= 9"}, trials=1)
    run_study(spec, tmp_path)
    with pytest.raises(UsageError, match="study none has no feasible trial"):
        compare([open_study(spec, tmp_path), two[0]])


@pytest.mark.slow
def test_holm_is_that_of_statsmodels():
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 20):
        p_values = rng.random(n) ** 3
        assert holm(p_values.tolist()) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


def test_references_are_measured_by_hand(two):
    opened = two[0]
    dataset = opened.splits.select
    last = [q.history[-1].label == q.gold for q in dataset.questions]
    found = reference_answers(opened, "select")["last label of the history"]
    assert (found.answers.correct.tolist(), found.answered) == (last, len(last))
    assert references(opened, "select")["last label of the history"] == np.mean(last)
    candidate = opened.objective.evaluate(opened.rooms.BASELINE, "select")
    beside = against_references(opened, "select", candidate, "nll")["last label of the history"]
    assert (beside["answered"], beside["n"], list(beside["tests"])) == (len(last), len(last), ["accuracy"])
    test, by_hand = beside["tests"]["accuracy"], paired(np.array(last), candidate)
    assert test["delta"] == pytest.approx(candidate.metrics["accuracy"] - np.mean(last))
    assert (test["interval"], test["p_value"]) == (by_hand["ci95"], by_hand["p_value"])
    assert set(against_references(opened, "select", candidate, "nll")["prior alone"]["tests"]) == {"accuracy", "nll"}


def test_the_sign_of_the_taste_is_measured_both_ways(two):
    opened = two[0]
    params = opened.rooms.BASELINE.changed(beta=1.0, gamma=0.8, kappa=5.0, prior_mode="user")
    profile = taste_profile(opened, params)
    assert list(profile) == ["added", "left out", "subtracted"]
    assert profile["added"] == opened.objective.evaluate(params).metrics["accuracy"]
    assert profile["added"] > profile["left out"] > profile["subtracted"]
    assert taste_profile(opened, opened.rooms.BASELINE) == {}


@pytest.fixture
def train_and_dev(tmp_path):
    """A folder as a user has it: train and dev files of different users."""
    folder = tmp_path / "lamp"
    world = make_world(3, users=110, questions_per_user=3).dataset
    users = sorted({q.user_id for q in world.questions})
    write_dataset(folder, "train", world.of_users(users[:40]))
    write_dataset(folder, "dev", world.of_users(users[40:]))
    return folder


@pytest.mark.slow
def test_an_encoder_study_from_two_files_to_a_served_config(tmp_path, spec_of, tiny_encoder, train_and_dev):
    shares = {"tune": 0.6, "select": 0.2, "confirm": 0.2}
    spec = spec_of(
        name="own",
        data={"path": str(train_and_dev), "split": "files", "shares": shares},
        model={"path": str(tiny_encoder)},
        objective="retrieval",
        warm_start=True,
        trials=12,
        constraints={},
    )
    result = run_study(spec, tmp_path)
    opened = open_study(spec, tmp_path)
    sizes = [len({q.user_id for q in opened.splits.part(part).questions}) for part in ("tune", "select", "confirm")]
    assert sizes == [30, 10, 70]
    assert "k" not in opened.space
    assert {"template", "scale"} <= set(opened.space)
    assert result.failed == 0
    assert (tmp_path / "results" / "own" / "best" / "gamma.png").read_bytes().startswith(b"\x89PNG")
    answer = promote(opened, tmp_path / "deploy")
    assert answer["promoted"], answer["reason"]
    assert set(answer["confirm"]["references"]) == set(references(opened, "confirm"))
    served = Deployment.load(tmp_path / "deploy")
    right = [
        p.label == q.gold
        for p, q in zip(served.predict(opened.splits.confirm.questions), opened.splits.confirm.questions, strict=True)
    ]
    assert np.mean(right) == answer["confirm"]["accuracy"]


def test_a_parameter_of_other_models_is_refused_by_name(tmp_path, spec_of, tiny_encoder):
    spec = spec_of(objective="retrieval", model={"path": str(tiny_encoder)}, space={"k": 4})
    with pytest.raises(UsageError, match=r"space\.k: no such parameter; this chain has, with this model, template"):
        open_study(spec, tmp_path)


def test_steering_an_encoder_is_refused_by_name(tmp_path, spec_of, tiny_encoder):
    spec = spec_of(objective="steering", model={"path": str(tiny_encoder)})
    with pytest.raises(UsageError, match=r"stage steering takes a causal model, and .* is an encoder"):
        open_study(spec, tmp_path)
    open_study(spec.model_copy(update={"objective": "calibration"}), tmp_path)


def test_metrics_of_numbers_need_numbers(tmp_path, spec_of):
    with pytest.raises(UsageError, match="metric mae needs labels that are numbers in a row"):
        open_study(spec_of(optimize={"mae": "minimize"}), tmp_path)
    open_study(spec_of(), tmp_path)  # no study was left behind under this name


def test_a_folder_without_train_or_dev_says_what_it_has(tmp_path, spec_of, small_data):
    spec = spec_of(data={"path": str(small_data), "split": "files"})
    with pytest.raises(DataError, match=r"needs one train_questions\.json .* and there is none"):
        open_study(spec, tmp_path)
