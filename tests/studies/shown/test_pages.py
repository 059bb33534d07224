"""The pages and their API: what they say, and what they refuse."""

import html
import json
import re
import shutil
from itertools import pairwise
from unittest.mock import Mock

import optuna
import pytest
from fastapi.testclient import TestClient
from optuna.distributions import CategoricalDistribution

from studies.recovery import enqueue
from studies.runner import run_study
from studies.shown.pages import drawing
from studies.shown.pages.app import application, signed
from studies.shown.pages.house import House
from studies.storage import storage_url
from studies.study import RECORD, find_study
from tests.studies.shown.conftest import client_of, house_of, odd_studies

row_of = House._row


def test_an_empty_home_says_how_to_begin(tmp_path):
    answer = client_of(house_of(tmp_path)).get("/")
    assert answer.status_code == 200
    assert "There is no study yet" in answer.text
    assert f"chamtune run demo --home {tmp_path}" in answer.text


def test_a_race_stands_on_the_start_page_and_its_page_is_one_click_away(experiments, tmp_path):
    home = shutil.copytree(experiments, tmp_path / "a home")
    folder = home / "results" / "race"
    folder.mkdir(parents=True)
    told = {
        "name": "race",
        "leader": "head",
        "study": "experiments",
        "promoted": True,
        "reason": "better",
        "minutes": 3.0,
    }
    said = {"baseline_accuracy": 0.25, "accuracy": 0.5}
    (folder / "auto.json").write_text(json.dumps({**told, "confirm": said, "arms": []}))
    (folder / "auto.html").write_text("<style>p { color: red }</style><p>all arms</p>")
    client = client_of(House(home, storage_url(home, None), None, None, None))
    start = client.get("/").text
    assert "head is worth it" in start
    assert '<a href="/race?name=race">' in start
    assert client.get("/api/races").json() == [{**told, "confirm": said}]
    page = client.get("/race", params={"name": "race"})
    assert "all arms" in page.text
    assert "style-src 'unsafe-inline'" in page.headers["content-security-policy"]
    assert "script-src" not in page.headers["content-security-policy"]
    assert "unsafe-inline" not in client.get("/").headers["content-security-policy"]
    for other in ("../race", "nothing", "race/auto"):
        assert client.get("/race", params={"name": other}).status_code == 404


def test_what_cannot_be_read_takes_nothing_else_from_the_pages(experiments, tmp_path):
    home = shutil.copytree(experiments, tmp_path / "home")
    for name, told in {
        "torn": '{"name": "to',
        "list": "[]",
        "other": '{"confirm": {}}',
        "bare": '{"reason": "r"}',
    }.items():
        (home / "results" / name).mkdir(parents=True)
        (home / "results" / name / "auto.json").write_text(told)
    for place in ("half/3", "half/2", "torn/1", "list/1"):
        (home / "deployments" / place).mkdir(parents=True)
    for place, told in {
        "half/2": "provenance: {study: experiments}",
        "torn/1": "a: [",
        "list/1": "provenance: 3",
    }.items():
        (home / "deployments" / place / "deploy.yaml").write_text(told)
    strange = optuna.create_study(storage=storage_url(home, None), study_name="strange")
    strange.set_user_attr(RECORD, {"id": "x"})
    client = client_of(house_of(home))
    assert client.get("/").status_code == 200
    assert [row["name"] for row in client.get("/api/races").json()] == ["bare"]
    (row,) = client.get("/api/studies").json()
    assert (row["study"], [place["generation"] for place in row["deployments"]]) == ("experiments", [2])
    page = client.get("/race?name=bare")
    assert (page.status_code, "auto.html: No such file" in page.text) == (404, True)


def test_a_study_that_goes_while_it_is_read_is_left_out(tmp_path, monkeypatch):
    url = storage_url(tmp_path, None)
    for name in ("gone", "there"):
        optuna.create_study(storage=url, study_name=name)
    house = house_of(tmp_path)
    names, optuna_gone = house.names(), KeyError("Record does not exist.")
    optuna.delete_study(study_name="gone", storage=url)
    monkeypatch.setattr(house, "names", lambda: names)
    assert [row["study"] for row in house.overview()] == ["there"]
    monkeypatch.setattr("studies.shown.pages.house.trials_of", Mock(side_effect=optuna_gone))
    assert client_of(house).get("/api/studies").json() == []


def test_a_study_that_took_the_name_and_number_of_another_is_read_anew(tmp_path):
    url, house = storage_url(tmp_path, None), house_of(tmp_path)
    for value in (1.0, 2.0):
        study = optuna.create_study(storage=url, study_name="again")
        study.add_trials([optuna.create_trial(value=value) for _ in range(3)])
        assert house.overview()[0]["best"] == value
        assert house.insights(["again"])["best"]["value"] == value
        optuna.delete_study(study_name="again", storage=url)


@pytest.mark.parametrize("path", ["/", "/api/studies"])
def test_what_nobody_foresaw_is_one_line_and_logged(experiments, monkeypatch, path):
    house = house_of(experiments)
    monkeypatch.setattr(house, "overview", Mock(side_effect=ZeroDivisionError("<b>by zero</b>\nand more")))
    with pytest.raises(ZeroDivisionError):  # what the server logs
        client_of(house).get(path)
    client = TestClient(application(house), base_url="http://127.0.0.1", raise_server_exceptions=False)
    answer = client.get(path)
    assert answer.status_code == 500
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    said = answer.json()["detail"] if path.startswith("/api") else html.unescape(answer.text)
    assert "ZeroDivisionError: <b>by zero</b>; logs/pages.log in the home folder shows where" in said
    assert "<b>by zero" not in answer.text or path.startswith("/api")


def test_the_api_covers_what_the_report_answers(experiments):
    client = client_of(house_of(experiments))
    told = client.get("/api/insights", params={"study": "experiments"}).json()
    assert told["success"]
    assert {"training", "architecture", "features", "data"} <= set(told["analysis"])
    assert {"good_threshold", "total_experiments", "good_experiments"} <= set(told)
    entry = told["analysis"]["training"][0]
    assert {"param", "field", "values"} <= set(entry)
    assert {"value", "score", "mean", "best", "count", "good_count", "confidence"} <= set(entry["values"][0])
    assert client.get("/api/suggestions", params={"study": "experiments"}).json() == told["suggestions"]
    row = client.get("/api/studies").json()[0]
    assert (row["study"], row["trials"], row["complete"], row["foreign"]) == ("experiments", 25, 24, True)
    assert row["links"]["dashboard"] == "http://127.0.0.1:8080/dashboard/studies/1"
    described = client.get("/openapi.json").json()["paths"]
    assert {"/api/studies", "/api/races", "/api/insights", "/api/suggestions", "/insights.csv"} == set(described)


def test_the_page_has_a_card_for_each_parameter_in_two_rows_where_two_are_compared(experiments):
    page = client_of(house_of(experiments)).get("/insights?study=experiments").text
    cards = page.count('<article class="card')
    told = house_of(experiments).insights(["experiments"])
    fixed = {row["parameter"] for row in told["importance"] if row["unjudged"] == "fixed"}
    entries = [entry["field"] for entries in told["analysis"].values() for entry in entries]
    assert len(fixed) == 1
    assert cards == len(set(entries) - fixed) > 22
    for group in ("training", "architecture", "features", "data"):
        assert f'class="group group-{group}"' in page
    assert re.findall(r'<p class="row-name">(\w+)</p>', page) == ["buyer", "product"] * 2
    assert "128→64→32" in page
    assert "customer_id 64D" in page
    assert "--enqueue" not in page  # a foreign study has no queue


def test_the_table_is_csv_and_no_formula(experiments):
    answer = client_of(house_of(experiments)).get("/insights.csv?study=experiments")
    lines = answer.text.splitlines()
    assert lines[0].startswith("group,parameter,value,score,low,high,ratio_raw,confidence")
    told = house_of(experiments).insights(["experiments"])["analysis"]
    assert len(lines) == 1 + sum(len(entry["values"]) for entries in told.values() for entry in entries)


def test_what_users_write_is_escaped(tmp_path):
    url = storage_url(tmp_path, None)
    name, choice = '<script>alert("x")</script>', "=cmd|' /C calc'!A0"
    study = optuna.create_study(storage=url, study_name=name, direction="maximize")
    space = {"<img src=x onerror=alert(1)>": CategoricalDistribution([choice, "</svg><script>1</script>"])}
    for place in range(12):
        params = {next(iter(space)): next(iter(space.values())).choices[place % 2]}
        study.add_trial(optuna.create_trial(params=params, distributions=space, value=float(place)))
    client = client_of(house_of(tmp_path))
    for path in ("/", "/insights"):
        page = client.get(path, params={"study": name}).text
        assert "<script>alert" not in page
        assert "<img src=x" not in page
        assert "</svg><script>1" not in page
    table = client.get("/insights.csv", params={"study": name}).text
    assert ",'=cmd" in table
    assert client.get("/insights", params={"study": "<b>none</b>"}).status_code == 404
    assert "<b>none" not in client.get("/insights", params={"study": "<b>none</b>"}).text


@pytest.mark.parametrize("path", ["/", "/insights?study=experiments", "/api/studies", "/static/page.js"])
def test_other_hosts_and_all_writing_are_refused(experiments, path):
    client = client_of(house_of(experiments))
    assert client.get(path).status_code == 200
    assert client.get(path, headers={"Host": "evil.example"}).status_code == 400
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert client.request(method, path).status_code == 405
    head = client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == str(len(client.get(path).content))
    assert "default-src 'none'" in client.get(path).headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/insights", 422), ("/insights", 422), ("/api/insights?study=no", 404), ("/api/suggestions?study=", 404),
        ("/insights.csv?study=no", 404), ("/nothing", 404), ("/static/../app.py", 404),
        ("/api/insights?" + "&".join(["study=x"] * 21), 422),
    ],
)  # fmt: skip
def test_wrong_requests_are_told_and_no_fault(experiments, path, status):
    answer = client_of(house_of(experiments)).get(path)
    assert answer.status_code == status


@pytest.mark.slow
def test_a_study_of_chamtune_is_followed_while_it_runs(tmp_path, spec_of, kept_scores, no_results):
    run_study(spec_of(trials=8), tmp_path)
    house = house_of(tmp_path)
    client = client_of(house)
    before = client.get("/api/insights?study=small").json()
    assert before["total_experiments"] == 8
    assert client.get("/api/insights?study=small").json() == before
    run_study(spec_of(trials=12), tmp_path)
    assert client.get("/api/insights?study=small").json()["total_experiments"] == 12
    enqueue(find_study("small", tmp_path, None), {})
    row = client.get("/api/studies").json()[0]
    assert (row["trials"], row["waiting"], row["running"]) == (12, 1, 0)
    assert "chamtune insights small --home" in client.get("/insights?study=small").text
    (tmp_path / "results" / "small" / "insights").mkdir(parents=True)
    step = {"gain": 0.1, "low": 0.0, "high": 0.2, "alone": 0.1, "without": 0.1, "droppable": True, "users": None}
    path = {
        "study": "small", "trial": 3, "measured_on": "tune", "metric": "accuracy", "before": 0.1, "after": 0.2,
        "gain": 0.1, "low": 0.0, "high": 0.2,
        "steps": [{**step, "step": "gamma", "values": {"gamma": 1.0}, "moved": []}],
    }  # fmt: skip
    (tmp_path / "results" / "small" / "insights" / "path.json").write_text(json.dumps(path))
    page = client.get("/insights?study=small").text
    assert "could be dropped" in page
    assert "tune users, on which it was chosen: optimistic" in page


def test_studies_of_other_spaces_stand_side_by_side(experiments):
    url = storage_url(experiments, None)
    if "other" not in optuna.get_all_study_names(url):
        study = optuna.create_study(storage=url, study_name="other", direction="minimize")
        study.optimize(lambda trial: trial.suggest_float("learning_rate", 0, 1), n_trials=12)
    told = client_of(house_of(experiments)).get("/api/insights?study=experiments&study=other").json()
    assert told["metric"] == "rank by recall_at_100 and value"
    assert told["total_experiments"] == 37
    assert client_of(house_of(experiments)).get("/insights?study=experiments&study=other").status_code == 200


def test_steps_of_a_waterfall_stand_on_one_another():
    steps = [{"step": n, "gain": g, "low": g - 0.1, "high": g + 0.1} for n, g in (("a", 0.3), ("b", -0.1), ("c", 0.2))]
    drawn = drawing.waterfall({"steps": steps, "gain": 0.4, "low": 0.2, "high": 0.6})
    bars = drawn["bars"]
    assert [round(b["from"], 9) for b in bars] == [0, 0.3, 0.2, 0]
    assert round(bars[-1]["to"], 9) == round(bars[-2]["to"], 9) == 0.4
    for before, after in pairwise(bars[:-1]):
        assert before["end"] in (pytest.approx(after["x"]), pytest.approx(after["x"] + after["width"]))
    assert all(b["x_low"] <= b["end"] <= b["x_high"] for b in bars)


def test_any_study_of_optuna_is_shown(tmp_path):
    client = client_of(house_of(tmp_path))
    for name in odd_studies(storage_url(tmp_path, None)):
        for path in ("/insights", "/api/insights", "/api/suggestions", "/insights.csv"):
            assert client.get(path, params={"study": name}).status_code == 200, (name, path)
    assert client.get("/").status_code == 200
    told = client.get("/api/insights", params={"study": "mixed"}).json()
    values = {entry["field"]: {v["value"] for v in entry["values"]} for entry in told["analysis"]["other"]}
    assert values["any"] == {"None", "True", "3", "0.5", "x"}
    assert {row["parameter"]: row["warning"] for row in told["importance"]}["one"] == "cannot matter: 1 in every trial"
    assert "1 in every trial" not in client.get("/insights", params={"study": "empty"}).text
    by = {
        goal: client.get("/api/insights", params={"study": "mixed"} | ({"goal": goal} if goal else {})).json()
        for goal in (None, "value", "value 1")
    }
    assert by[None] == by["value"]
    assert [by[goal]["best"]["trial"] for goal in ("value", "value 1")] == [0, 0]
    assert [by[goal]["best"]["value"] for goal in ("value", "value 1")] == [0, 0]
    assert [by[goal]["direction"] for goal in ("value", "value 1")] == ["minimize", "maximize"]
    page = client.get("/insights", params={"study": "mixed", "goal": "value 1"}).text
    assert 'goal=value%201" aria-current="page"' in page
    answer = client.get("/insights", params={"study": "mixed", "goal": "speed"})
    assert (answer.status_code, "there are: value, value 1" in answer.text) == (404, True)


@pytest.mark.parametrize(("score", "at"), [(1.0, 50), (8.0, 100), (80.0, 100), (0.125, 0), (0.0, 0), (None, 100)])
def test_the_axis_of_scores(score, at):
    assert drawing.place(score) == pytest.approx(at)


def test_numbers_and_ranges_of_them_stand_in_their_order_and_names_as_they_come():
    def ordered(*values) -> list[str]:
        return [row["value"] for row in drawing.in_order([{"value": value} for value in values])]

    assert ordered("1.07 to 1.9", "-0.4 to 0.9", "0.9 to 1.07") == ["-0.4 to 0.9", "0.9 to 1.07", "1.07 to 1.9"]
    assert ordered("16", "2", "128") == ["2", "16", "128"]
    assert ordered("user", "global", "3") == ["user", "global", "3"]


@pytest.mark.parametrize(
    ("value", "said"), [(0.0796, "+0.080"), (-0.109, "-0.109"), (0.0, "0.000"), (-0.0, "0.000"), (-0.0004, "0.000")]
)
def test_a_difference_that_rounds_to_nothing_has_no_sign(value, said):
    assert signed(value) == said


def test_a_study_alone_cannot_be_chosen_and_its_verdict_stands_on_both_pages(tmp_path, monkeypatch):
    record = {"promoted": True, "reason": "accuracy better by +0.1", "trial": 3, "metrics": {"value": 1.0}}
    monkeypatch.setattr(House, "_row", lambda self, *given: {**row_of(self, *given), "verdict": record})
    for place, name in enumerate(("one", "two")):
        study = optuna.create_study(storage=storage_url(tmp_path, None), study_name=name, direction="maximize")
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=12)
        client = client_of(house_of(tmp_path))
        assert client.get("/").text.count('type="checkbox"') == 2 * place
    for path in ("/", "/insights?study=one"):
        assert "promoted, trial 3: accuracy better by +0.1" in client.get(path).text
    page = client.get("/insights?study=one").text
    assert page.index('class="jump"') < page.index('id="winners"') < page.index('class="course"')
