"""Whose gain it is: own histories against exchanged ones, in a promotion and in what it leaves."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from objectives.classification import Classification
from personalization.data.demo.world import make_world
from personalization.data.exchange import exchange
from personalization.data.splits import split_users
from personalization.deployment import Deployment, read_config
from search_spaces import chain_space
from studies.results import groups_of
from studies.shown.display import print_promotion
from studies.spec import PromotionSpec
from studies.verdict.coldstart import curve, table
from studies.verdict.personal import answers_of, parts
from studies.verdict.promotion import promote
from tests.planted import GOLDS, BiasedScorer
from tests.tiny import SHARES

SPACE = chain_space(("calibration",))
TASTE = SPACE.BASELINE.changed(beta=1.0, gamma=1.0, kappa=5.0, prior_mode="user")


def opened_on(dataset):
    """As much of a study as is asked here, on planted scores."""
    GOLDS.update({q.text: q.gold for q in dataset.questions})
    objective = Classification(SPACE, split_users(dataset, SHARES), BiasedScorer("", None))
    return SimpleNamespace(objective=objective, splits=objective.splits, rooms=SPACE)


def parts_on_confirm(opened, params, metric="accuracy"):
    swapped = exchange(opened.splits.confirm)
    before, after = (answers_of(opened, asked, "confirm", swapped) for asked in (SPACE.BASELINE, params))
    return parts(before, after, swapped, metric)


@pytest.fixture(scope="module")
def planted():
    return opened_on(make_world(1, users=200, questions_per_user=4).dataset)


def test_the_gain_of_a_taste_is_personal_where_users_differ(planted):
    found = parts_on_confirm(planted, TASTE)
    for weight in ("by_question", "by_user"):
        test = found[weight]["personal"]
        assert test["delta"] > 0.05
        assert test["interval"][0] > 0
        assert test["p_value"] < 0.01
    assert found["users"] == 60
    assert found["off_by"] <= 1


def test_where_users_do_not_differ_nothing_is_personal():
    found = parts_on_confirm(opened_on(make_world(1, users=200, questions_per_user=4, null=True).dataset), TASTE)
    test = found["by_question"]["personal"]
    assert test["p_value"] > 0.05
    assert test["interval"][0] < 0 < test["interval"][1]


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
def test_what_reads_no_history_has_exactly_no_personal_part(planted, metric):
    found = parts_on_confirm(planted, TASTE.changed(gamma=0.0), metric)
    assert found["by_question"]["gain"]["delta"] > 0
    for weight in ("by_question", "by_user"):
        assert found[weight]["personal"] == {"delta": 0.0, "interval": [0.0, 0.0], "p_value": 1.0}


def test_one_user_has_nobody_to_exchange_with(planted):
    found = parts(*(answers_of(planted, TASTE, "confirm", None),) * 2, None, "accuracy")
    assert list(found["by_user"]) == ["gain"]
    assert "nobody to exchange" in found["why_not"]


def test_a_promotion_says_what_is_personal_wherever_it_speaks(tmp_path, make_study, capsys):
    opened, out = make_study(), tmp_path / "deploy"
    result = promote(opened, out)
    confirm, folder = result["confirm"], opened.home / "results" / "planted" / "confirm"
    assert confirm["parts"]["by_question"]["gain"]["delta"] == pytest.approx(confirm["delta_accuracy"])
    assert confirm["parts"]["by_question"]["gain"]["interval"] == confirm["ci95"]
    written = json.loads((folder / "personal.json").read_text())
    assert (written["parts"], written["cost"]) == (confirm["parts"], confirm["cost"])
    assert "| personal |" in (folder / "personal.md").read_text()
    assert "every user counting the same" in (folder / "summary.md").read_text()
    kept = read_config(out)["provenance"]["confirm"]
    assert (kept["parts"], kept["cost"]) == (confirm["parts"], confirm["cost"])
    assert confirm["cost"]["cost_ms"] > 0
    assert confirm["cost"]["training_s"] > 0
    assert confirm["cost"]["user_bytes"] == 0
    print_promotion(json.loads(json.dumps(result)))
    said = " ".join(capsys.readouterr().out.split())
    personal = confirm["parts"]["by_question"]["personal"]["delta"]
    assert f"personal {personal:+.3f}" in said
    assert "ms a question" in said
    assert "accuracy by the newest history items given (no test): 0:" in said


def with_terms(opened, **terms):
    opened.spec = opened.spec.model_copy(update={"promotion": PromotionSpec(**terms)})
    return opened


def test_a_personal_gain_passes_the_gate(tmp_path, make_study):
    opened = with_terms(make_study(), personal=True)
    result = promote(opened, tmp_path / "deploy", with_cold_start=False)
    assert (result["promoted"], result["cold_start"]) == (True, None)
    assert not (opened.home / "results" / "planted" / "confirm" / "cold_start.json").exists()


@pytest.mark.slow
def test_a_general_gain_does_not(tmp_path, make_study):
    opened, general = make_study(name="bias", space={"gamma": 0.0}), {"alpha": 0.5, "beat_references": False}
    refused = promote(with_terms(opened, personal=True, **general), tmp_path / "deploy")
    assert not refused["promoted"]
    assert refused["reason"].startswith("the gain in accuracy is not shown to be personal: +0.000 more")
    assert "\n" not in refused["reason"]
    assert promote(with_terms(opened, **general), tmp_path / "deploy")["promoted"]


def test_the_curve_begins_without_history_and_ends_with_what_was_confirmed(tmp_path, make_study):
    opened, out = make_study(), tmp_path / "deploy"
    result = promote(opened, out)
    rows = {row["items"]: row for row in result["cold_start"]["rows"]}
    assert list(rows) == [0, 1, 2, 4, 8, 16, "all"]
    assert rows["all"]["accuracy"] == result["confirm"]["accuracy"]
    assert rows["all"]["gain"] == pytest.approx(result["confirm"]["delta_accuracy"])
    assert rows["all"]["interval"][0] < rows["all"]["accuracy"] < rows["all"]["interval"][1]
    assert result["cold_start"]["without_history"] is None
    strangers = [replace(q, history=(), user_id=f"new {q.user_id}") for q in opened.splits.confirm.questions]
    served = Deployment.load(out).predict(strangers)
    assert rows[0]["accuracy"] == np.mean([a.label == q.gold for a, q in zip(served, strangers, strict=True)])
    folder = opened.home / "results" / "planted" / "confirm"
    assert json.loads((folder / "cold_start.json").read_text()) == result["cold_start"]
    assert "not a test" in (folder / "cold_start.md").read_text()


@pytest.mark.slow
@pytest.mark.draws
def test_the_curve_is_drawn(tmp_path, make_study):
    opened = make_study()
    promote(opened, tmp_path / "deploy")
    picture = opened.home / "results" / "planted" / "confirm" / "cold_start.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_users_without_history_are_a_group_of_their_own(monkeypatch):
    monkeypatch.setattr("tracking.significance.RESAMPLES", 99)
    dataset = make_world(1, users=60, questions_per_user=2).dataset
    new = {f"user-{number:04d}" for number in range(0, 60, 3)}
    bare = [
        replace(q, history=()) if q.user_id in new else replace(q, history=q.history[:3]) for q in dataset.questions
    ]
    opened = opened_on(replace(dataset, questions=tuple(bare)))
    found = curve(opened, TASTE)
    strangers = sum(q.user_id in new for q in opened.splits.confirm.questions)
    assert [row["items"] for row in found["rows"]] == [0, 1, 2, "all"]
    assert {row["questions"] for row in found["rows"]} == {len(opened.splits.confirm) - strangers}
    assert found["without_history"]["questions"] == strangers
    assert "| users without any |" in table({**found, "note": "n"})
    for part in ("tune", "confirm"):  # and in every report
        told = groups_of(opened, TASTE, part)["histories"]
        users = {q.user_id for q in opened.splits.part(part).questions}
        assert told == {user: "none" if user in new else "some" for user in users}
