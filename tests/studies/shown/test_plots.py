"""Small plots of the page of insights: where dots stand, what the page says of them, times and the space."""

import math
import re
from datetime import datetime, timedelta

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial

from studies.insights.history import history
from studies.insights.slices import MOST
from studies.shown.pages import drawing
from studies.shown.pages.app import day, lasted, period
from studies.shown.pages.plots import ACROSS, HEIGHT, UP, plots
from studies.storage import storage_url
from tests.studies.insights.worlds import planted, trial
from tests.studies.shown.conftest import client_of, house_of

LOG = {"rate": FloatDistribution(1e-4, 1, log=True)}


def dots(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"M(-?[\d.]+) (-?[\d.]+)", path)]


def of_rates(rates, values, broken=()):
    trials = []
    for number, (rate, value) in enumerate(zip(rates, values, strict=True)):
        trials.append(trial({"rate": rate}, value, LOG, {"c": float(number in broken)}))
        trials[-1].number = number
    return history("rates", trials, ("v", "maximize"))


def test_dots_lie_where_values_say_and_the_mark_at_the_best_trial():
    found = planted(15)
    made = plots(found)["strong"]
    assert [len(dots(path)) for path in made["ages"]] == [3] * 5
    at = np.array([place for path in made["ages"] for place in dots(path)])
    for column, places, end in (("params_strong", at[:, 0], ACROSS), ("value", at[:, 1], UP)):
        known = found.trials[column].to_numpy(dtype=float)
        slope = (end[1] - end[0]) / np.ptp(known)
        assert 0.8 < np.ptp(places) / abs(slope * np.ptp(known)) < 1
        line = np.polyfit(known, places, 1)
        assert np.abs(np.polyval(line, known) - places).max() < 0.06
        assert np.sign(line[0]) == np.sign(slope)
    lead = found.trials["gain"].idxmax()
    assert (made["lead"]["x"], made["lead"]["y"]) == tuple(at[lead])
    assert (made["number"], made["beyond"], made["left"]) == (lead, 0, 0)


def test_a_log_axis_has_equal_steps_for_equal_factors_and_infeasible_trials_are_rings():
    made = plots(of_rates([1e-3, 1e-2, 1e-1, 1.0], [1, 2, 3, 9], broken=(3,)))["rate"]
    x = [place for path in made["ages"] for place, _ in dots(path)]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.15)
    assert [tick["said"] for tick in made["x_ticks"]] == ["0.001", "0.01", "0.1", "1"]
    (ring,) = dots(made["broken"])
    assert ring[0] + 2.2 - x[2] == pytest.approx(x[2] - x[1], abs=0.2)
    assert (made["number"], made["setting"]) == (2, "0.1")
    near = plots(of_rates([0.4, 0.5, 0.6, 0.7], [1, 2, 3, 4]))["rate"]
    assert [tick["said"] for tick in near["x_ticks"]] == ["0.5"]


def test_what_lies_far_out_stands_at_the_edge_and_one_that_no_float_holds_is_not_drawn():
    values = [1 + i / 100 for i in range(40)]
    made = plots(of_rates(np.geomspace(1e-3, 1, 40), [-1e9, *values[1:]]))["rate"]
    assert made["beyond"] >= 1
    assert all(UP[1] <= y <= UP[0] < HEIGHT for path in made["ages"] for _, y in dots(path))
    assert max(y for path in made["ages"] for _, y in dots(path)) == UP[0]
    assert plots(of_rates([0.1, 0.2], [-1.7e308, 1.7e308])) == {}


def test_many_trials_give_at_most_so_many_dots_and_the_page_says_so(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("many", 340), ("few", 60)):
        study = optuna.create_study(storage=storage_url(tmp_path, None), study_name=name, direction="maximize")
        drawn = [{"rate": float(10 ** rng.uniform(-4, 0))} for _ in range(count)]
        study.add_trials([create_trial(params=p, distributions=LOG, value=math.log(p["rate"])) for p in drawn])
    client = client_of(house_of(tmp_path))
    shown = {}
    for name in ("many", "few"):
        page = client.get(f"/insights?study={name}").text
        (plot,) = re.findall(r'<svg class="chart slice".*?</svg>', page, re.DOTALL)
        shown[name] = sum(len(dots(path)) for path in re.findall(r' d="(.*?)"', plot))
        assert ("of more than 300 trials the best 60 and 240 spread" in page) == (name == "many")
        assert plot.count('class="lead"') == 1
        assert "plots" not in client.get(f"/api/insights?study={name}").json()
    assert shown == {"many": MOST, "few": 60}


@pytest.mark.parametrize("count", [300, 301, 10_000])
def test_no_plot_has_more_dots_than_are_stated(count):
    for made in plots(planted(count)).values():
        assert sum(len(dots(path)) for path in (*made["ages"], made["broken"])) == MOST
        assert made["left"] == count - MOST


def test_the_page_says_how_long_trials_ran_when_the_last_ended_and_what_was_searched(tmp_path):
    space = {"x": FloatDistribution(0, 1), "kind": CategoricalDistribution(["a<b", "c"])}
    study = optuna.create_study(storage=storage_url(tmp_path, None), study_name="timed", direction="maximize")
    begun = datetime(2026, 3, 1, 8)
    for i in range(20):
        made = create_trial(params={"x": i / 20, "kind": ("a<b", "c")[i % 2]}, distributions=space, value=i % 7)
        made.datetime_start, made.datetime_complete = begun + timedelta(hours=i), begun + timedelta(hours=i, minutes=15)
        study.add_trial(made)
    client = client_of(house_of(tmp_path))
    page = client.get("/insights?study=timed").text
    assert '<time datetime="PT18000S">5 hours</time>' in page
    assert '<time datetime="2026-03-02T03:15:00">2 Mar 2026, 03:15</time>' in page
    told = client.get("/api/insights?study=timed").json()
    assert told["heads"][0]["seconds"] == 18_000
    assert told["course"][-1]["seconds"] == 18_000
    table = page[page.index('id="space"') :]
    table = table[: table.index("</details>")]
    assert re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", table)).count("linear 20 20") == 1
    assert "a&lt;b, c" in table
    assert "read when" not in table
    assert page.index('id="across-time"') < page.index("hours that trials ran, in all")


def test_without_running_times_the_course_has_one_view():
    rows = [{"number": n, "seconds": 0.0, "best": n, "value": n, "feasible": True} for n in range(3)]
    assert drawing.by_time({"course": rows, "points": rows}) is None
    later = [{**row, "seconds": 200.0 * row["number"]} for row in rows]
    drawn = drawing.by_time({"course": later, "points": later})
    assert drawn["unit"] == "minutes"
    assert [round(p["across"], 2) for p in drawn["points"]] == [0, 3.33, 6.67]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "under a second"), (1, "1 second"), (61, "1 minute 1 second"), (3600, "1 hour"), (3601, "1 hour"),
     (12_000, "3 hours 20 minutes"), (200_000, "2 days 7 hours")],
)  # fmt: skip
def test_durations_are_said_in_their_two_largest_units(seconds, said):
    assert lasted(seconds) == said
    assert period(seconds) == f"PT{round(seconds)}S"
    assert day("2026-11-30T04:05:06") == "30 Nov 2026, 04:05"
