"""The heads of the pages and their charts: counts, failures, leading trials, several studies, curves."""

import re

import optuna
import pytest
from fastapi.testclient import TestClient
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from studies.recovery import FAILURE, INTERRUPTED
from studies.runner import run_study
from studies.shown.pages import drawing
from studies.shown.pages.app import application
from studies.shown.pages.heads import failures_of, winners_of
from studies.shown.pages.house import House
from studies.shown.show import counts_of
from studies.storage import storage_url
from studies.study import find_study

LONG = '[{"head": {"kind": "logistic", "c": 0.1}}, {"adapter": {"rank": 8, "start": 2}}]'
SPACE = {
    "x": FloatDistribution(0, 1),
    "only": CategoricalDistribution(["same", "other"]),
    "arms": CategoricalDistribution([LONG, "[]"]),
}


def made(home, name: str, count: int = 14, **ended: int) -> optuna.Study:
    """A study whose value is x, and so many trials that ended otherwise."""
    study = optuna.create_study(storage=storage_url(home, None), study_name=name, direction="maximize")
    for i in range(count):
        params = {"x": (5 * i % count) / count, "only": "same", "arms": (LONG, "[]")[i % 2]}
        study.add_trial(create_trial(params=params, distributions=SPACE, value=params["x"], constraints={"c": 0.0}))
    for state, times in ended.items():
        for _ in range(times):
            attributes = {FAILURE: "Traceback\n  line\nValueError: too hot"} if state == "FAIL" else {}
            study.add_trial(create_trial(state=TrialState[state], user_attrs=attributes))
    return study


def client_of(home) -> TestClient:
    house = House(home, storage_url(home, None), "http://127.0.0.1:8080", None, None)
    return TestClient(application(house), base_url="http://127.0.0.1")


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_both_pages_count_pruned_and_failed_trials_alike(tmp_path):
    made(tmp_path, "mixed", 14, PRUNED=3, FAIL=1)
    client = client_of(tmp_path)
    for path in ("/", "/insights?study=mixed"):
        page = text_of(client.get(path).text)
        assert "18: 14 complete, 3 pruned, 1 failed" in page
        assert "14 of 14 complete" in page
    row, told = client.get("/api/studies").json()[0], client.get("/api/insights?study=mixed").json()
    assert [row[name] for name in ("trials", "complete", "pruned", "failed", "uncounted")] == [18, 14, 3, 1, 0]
    names = ("total", "complete", "pruned", "failed")
    assert [told[f"{name}_experiments"] for name in names] == [18, 14, 3, 1]
    assert "trial 17 : ValueError: too hot" in text_of(client.get("/insights?study=mixed").text).replace("17:", "17 :")


def test_a_study_of_nothing_but_a_failure_shows_why_and_no_empty_section(tmp_path):
    study = optuna.create_study(storage=storage_url(tmp_path, None), study_name="broken")
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={FAILURE: INTERRUPTED}))
    page = client_of(tmp_path).get("/insights?study=broken").text
    assert "0, 1 not counted" in page
    assert "trial 0: interrupted" in text_of(page)
    assert "measured again by the next run" in page
    assert "follows the study" not in page
    assert re.findall(r'<section id="(\w+)"', page) == ["failures"]
    assert "<table" not in page
    optuna.create_study(storage=storage_url(tmp_path, None), study_name="new")
    page = client_of(tmp_path).get("/insights?study=new").text
    assert "This page follows the study while it runs" in page
    assert "<section" not in page


def test_failures_are_told_by_reason_and_whether_they_count(tmp_path):
    study = made(tmp_path, "f", 2, FAIL=2)
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={FAILURE: INTERRUPTED}))
    study.add_trial(create_trial(state=TrialState.FAIL))
    rows = failures_of(study.trials)
    assert rows[0] == {"reason": "ValueError: too hot", "counted": True, "trials": [2, 3]}
    assert {(row["reason"], row["counted"]) for row in rows[1:]} == {
        ("interrupted", False), ("no reason is recorded", False),
    }  # fmt: skip
    assert counts_of("f", study.trials)["uncounted"] == 2


def test_several_studies_are_told_apart_and_each_counts_once(tmp_path):
    made(tmp_path, "one", 14, PRUNED=1)
    made(tmp_path, "two", 12)
    client = client_of(tmp_path)
    told = client.get("/api/insights?study=one&study=two&study=one").json()
    assert (told["studies"], told["total_experiments"]) == (["one", "two"], 27)
    assert {row["study"] for row in told["likely"]} == {"one", "two"}
    page = client.get("/insights?study=one&study=two").text
    head = page[: page.index('id="matters"')]
    for name, counts in (("one", "15: 14 complete, 1 pruned<"), ("two", "12, all complete")):
        assert f'<a href="/insights?study={name}">{name}</a>' in head
        assert counts in head
    assert "its place among the feasible trials of its own study, from 0 (the worst) to 1 (the best)" in head
    assert 'id="trends"' not in page
    assert "so far" not in page
    best = page[page.index('id="best"') :]
    assert "<th>study</th>" in best
    assert {"<td>one</td>", "<td>two</td>"} <= set(re.findall(r"<td>\w+</td>", best))
    assert "chamtune compare" not in page  # not made by chamtune: their users are not known
    single = client.get("/insights?study=one&study=one")
    assert client.get("/api/insights?study=one&study=one").json()["total_experiments"] == 15
    assert "its place among" not in single.text
    assert "Insights of the chosen together" in client.get("/").text


def test_the_trials_that_lead_stand_together_with_what_they_were_measured_on(
    tmp_path, spec_of, kept_scores, no_results
):
    for name in ("small", "other"):
        run_study(spec_of(name=name, trials=12, constraints={}), tmp_path)
    house = House(tmp_path, storage_url(tmp_path, None), "http://127.0.0.1:8080", None, None)
    told = house.insights(["small"])
    study = find_study("small", tmp_path, None)
    tested = {"promoted": True, "trial": 3, "reason": "r", "metrics": {"accuracy": 0.25, "accuracy_gain": 0.2}}
    winners = winners_of(study, study.trials, told, tested)
    assert winners["trials"][0]["trial"] == told["best"]["trial"] == study.best_trial.number
    assert winners["trials"][-1] == {
        "what": "promoted", "trial": 3, "value": 0.25, "error": None, "users": "confirm users", "gain": 0.2,
    }  # fmt: skip
    assert winners["trials"][0]["gain"] == study.best_trial.user_attrs["measured"]["metrics"]["accuracy_gain"]
    assert {row["gain"] for row in winners["trials"] if row["what"] == "likely best"} <= {None}
    assert winners["trials"][0]["users"] == "tune users"
    by_name = {row["parameter"]: row["values"] for row in winners["parameters"]}
    assert by_name
    assert all(any(value is not None for value in values) for values in by_name.values())
    client = client_of(tmp_path)
    page = client.get("/insights?study=small").text
    assert page.index('id="winners"') < page.index('id="matters"')
    assert "best accuracy, tune users" in page
    assert "best accuracy, tune users" in client.get("/").text
    assert '<a href="http://127.0.0.1:8080/dashboard/studies/' in page[: page.index('id="winners"')]
    several = client.get("/insights?study=small&study=other").text
    assert f"<code>chamtune compare small other --home {tmp_path}</code>" in several
    assert f"chamtune insights small --home {tmp_path} --path" in page
    assert several.count("<td>tune users</td>") == 2
    assert several.count(">not promoted</td>") == 2


def test_what_was_not_estimated_is_one_line_and_draws_nothing(tmp_path):
    made(tmp_path, "s")
    client = client_of(tmp_path)
    page = client.get("/insights?study=s").text
    matters = page[page.index('id="matters"') : page.index('id="values"')]
    assert matters.count("<li") == 2
    assert "Not estimated: fixed: only = same." in matters
    page = re.sub(r'<details id="space".*?</table>', "", page, flags=re.DOTALL)
    for section in ("values", "trends", "best"):
        assert "same" not in page[page.index(f'id="{section}"') : page.index('id="next"')]
    told = client.get("/api/insights?study=s").json()
    fixed = next(row for row in told["importance"] if row["parameter"] == "only")
    assert (fixed["low"], fixed["high"], fixed["unjudged"], fixed["only"]) == (None, None, "fixed", "same")
    assert "only" in [entry["field"] for entries in told["analysis"].values() for entry in entries]
    few = [{"parameter": n, "unjudged": w, "only": None, "trials": t}
           for n, w, t in (("a", "too few trials", 3), ("b", "", 30), ("c", "never read", 0))]  # fmt: skip
    assert [(row["why"], [p["name"] for p in row["parameters"]]) for row in drawing.unjudged(few)] == [
        ("never read", ["c"]), ("too few trials", ["a"]),
    ]  # fmt: skip


def test_a_long_value_is_cut_and_kept_whole_behind_it(tmp_path):
    made(tmp_path, "s")
    page = client_of(tmp_path).get("/insights?study=s").text
    escaped = LONG.replace('"', "&#34;")
    assert f"</summary>{escaped}</details>" in page
    shown = re.sub(
        r'<details class="long">.*?</details>|<span class="tip">.*?</span>|<title>.*?</title>|title="[^"]*"', "", page
    )
    assert escaped not in shown
    assert "from 7 trials, " in page
    assert "confidence" not in text_of(page)


def corners(line: str) -> list[tuple[float, float]]:
    """The places of a path of M, H and V."""
    x, y, found = 0.0, 0.0, []
    for name, numbers in re.findall(r"([MHV])([-\d. ]+)", line):
        given = [float(n) for n in numbers.split()]
        x, y = (given[0], given[1]) if name == "M" else (given[0], y) if name == "H" else (x, given[0])
        found.append((x, y))
    return found


def test_a_lower_bounds_curve_is_flat_to_the_left_of_where_it_stops_costing():
    points = [{"bound": 3.9, "best": 0.36}, {"bound": 3.8, "best": 0.37}]
    drawn = drawing.curve(points, "bound", "best", 0.6, left=True)
    begin, *_, corner, end = corners(drawn["line"])
    assert end[0] == drawing.MARGIN["left"]
    assert end[0] < drawn["mark"] < corner[0] < begin[0]
    assert end[1] == corner[1] < begin[1]
    (first, second) = drawn["points"]
    assert (second["x"], first["y"]) in corners(drawn["line"])
    upper = drawing.curve([{"bound": 0.1, "best": 0.36}, {"bound": 0.2, "best": 0.37}], "bound", "best", 0.5)
    assert corners(upper["line"])[-1][0] == drawing.WIDTH - drawing.MARGIN["right"]


@pytest.mark.parametrize(
    "ends", [(0.795, 0.8035), (0.368, 0.37333), (0.36533, 0.37333), (1e-9, 2e-9), (0, 33), (-7, 90)]
)
def test_an_axis_has_three_ticks_and_their_texts_differ(ends):
    found = drawing.ticks(*ends)
    assert len(found) >= 3
    assert all(ends[0] <= tick <= ends[1] for tick in found)
    points = [{"x": 0, "y": ends[0]}, {"x": 1, "y": ends[1]}]
    said = [tick["said"] for tick in drawing.curve(points, "x", "y")["y_ticks"]]
    assert len(set(said)) == len(said) >= 3


def test_a_step_stands_at_its_trial_on_whole_numbers():
    course = [{"number": 0, "best": 0.2}, {"number": 3, "best": 0.4}, {"number": 5, "best": 0.4}]
    dots = [{"number": n, "value": 0.1 * n, "feasible": n != 2} for n in range(6)] + [
        {"number": 4, "value": None, "feasible": False}
    ]
    drawn = drawing.curve(course, "number", "best", dots=dots)
    ticks = {tick["said"]: tick["at"] for tick in drawn["x_ticks"]}
    assert set(ticks) <= {str(n) for n in range(6)}
    assert drawn["points"][1]["x"] == drawn["dots"][3]["x"]
    assert [dot["feasible"] for dot in drawn["dots"]] == [True, True, False, True, True, True]
    assert corners(drawn["line"])[-1][0] == drawn["dots"][5]["x"]


def test_one_level_stands_off_the_floor_with_a_scale():
    drawn = drawing.curve([{"number": 0, "best": 0.8}, {"number": 9, "best": 0.8}], "number", "best")
    height = corners(drawn["line"])[0][1]
    floor = drawing.HEIGHT - drawing.MARGIN["bottom"]
    assert drawing.MARGIN["top"] + 40 < height < floor - 40
    assert len(drawn["y_ticks"]) >= 3


def test_one_far_point_does_not_flatten_the_chart():
    dots = [{"number": n, "value": 1 + 0.01 * n, "feasible": True} for n in range(30)]
    dots[7]["value"] = 1e6
    course = [{"number": 0, "best": 1.0}, {"number": 29, "best": 1.29}]
    drawn = drawing.curve(course, "number", "best", dots=dots)
    assert drawn["beyond"] == 1
    assert drawn["points"][0]["y"] - drawn["points"][1]["y"] > 100
    assert all(drawing.MARGIN["top"] <= dot["y"] <= drawing.HEIGHT - drawing.MARGIN["bottom"] for dot in drawn["dots"])
