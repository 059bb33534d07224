"""Fields of trials: computed when a trial ends, worked out again for those of before, and told by group."""

import json

import optuna
import pandas as pd
import pytest

from studies.insights.history import together
from studies.insights.reading import KEPT, backfill, fields_of, with_fields
from studies.insights.report import as_json, insights_of
from studies.runner import run_study
from studies.storage import storage_url
from studies.study import find_study, open_study
from studies.trial import MEASURED
from tests.studies.insights.worlds import planted

pytestmark = pytest.mark.usefixtures("kept_scores", "no_results")


@pytest.fixture
def spec(spec_of):
    return spec_of(trials=12, chain=["calibration"], space={"fit": ["searched", "exact"]})


def stripped(home, name="small") -> None:
    """A study as earlier versions left it: the same trials without fields, under the same name."""
    url = storage_url(home, None)
    old = optuna.load_study(study_name=name, storage=url)
    trials, attributes = old.get_trials(), old.user_attrs
    for trial in trials:
        trial.user_attrs[MEASURED].pop("fields", None)
    optuna.delete_study(study_name=name, storage=url)
    new = optuna.create_study(study_name=name, storage=url, directions=old.directions)
    for key, value in attributes.items():
        new.set_user_attr(key, value)
    new.add_trials(trials)


def test_a_trial_has_its_fields_when_it_ends(spec, tmp_path):
    run_study(spec, tmp_path)
    trials = find_study("small", tmp_path, None).trials
    fields = fields_of(trials, {})
    assert sorted(fields) == list(range(12))
    exact = [trial.number for trial in trials if trial.params["fit"] == "exact"]
    assert exact
    assert [n for n in fields if "calibration.solved_beta" in fields[n]] == exact
    opened = open_study(spec, tmp_path)
    tune = opened.splits.tune
    for told in fields.values():
        assert told["data.rows"] == len(tune)
        assert told["data.users"] == len({question.user_id for question in tune.questions})
        assert told["data.labels"] == len(tune.labels)
        assert told["features.prompt"] == [f"question {told['features.prompt_characters']}"]


def test_those_of_before_are_worked_out_once_and_are_the_same(spec, tmp_path):
    run_study(spec, tmp_path)
    expected = fields_of(find_study("small", tmp_path, None).trials, {})
    stripped(tmp_path)
    found = find_study("small", tmp_path, None)
    assert fields_of(found.trials, found.user_attrs) == {}
    opened = open_study(spec, tmp_path)
    repeated = sum("duplicate_of" in trial.user_attrs[MEASURED] for trial in found.trials)
    assert backfill(opened) == {"filled": 12, "had": 0}
    assert fields_of(found.trials, opened.study.user_attrs) == {
        n: json.loads(json.dumps(told)) for n, told in expected.items()
    }
    assert backfill(opened) == {"filled": 0, "had": 12}
    assert sum(key.startswith(KEPT) for key in found.user_attrs) == 12
    assert repeated == sum("duplicate_of" in trial.user_attrs[MEASURED] for trial in found.trials)


def test_fields_are_scored_by_group_and_compared_across_studies():
    def told(number, rows):
        own = {"data.rows": rows, "training.epochs": number % 3, "features.prompt": ["question", f"{number % 2} items"]}
        return {**own, "steering.relative_edit": number / 40}

    plain = planted(40)
    one, other = (with_fields(plain, {n: told(n, rows) for n in range(0, 40, 2)}) for rows in (200, 900))
    shown = as_json(one, insights_of(one))["analysis"]
    assert "data" not in shown  # one value in all trials
    assert [(e["field"], e["measured"], e["items"]) for e in shown["training"]] == [("training.epochs", True, False)]
    assert sum(row["count"] for row in shown["training"][0]["values"]) == 20
    assert all(" to " in row["value"] for row in shown["steering"][0]["values"])  # a continuous one in bins
    for name, frame in insights_of(one).items():
        if name != "scores":
            pd.testing.assert_frame_equal(frame, insights_of(plain)[name])
    both = together([one, other])
    rows = next(e for e in as_json(both, insights_of(both))["analysis"]["data"])
    assert {row["value"]: row["count"] for row in rows["values"]} == {"200": 20, "900": 20}
    assert both.of_group("data").fields.keys() == {"data.rows"}


def test_what_a_foreign_trial_calls_measured_is_no_field():
    trials = [optuna.create_trial(value=1.0, user_attrs={"measured": told}) for told in (3, {}, {"fields": "no"})]
    assert fields_of(trials, {}) == {}
