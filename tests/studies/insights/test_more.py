"""Interactions, trends, likely values, prices, boxes, suggestions."""

import json
from dataclasses import replace

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from studies.constraints import parse_constraint
from studies.foreign import import_optuna
from studies.insights.history import _Idle, history, together
from studies.insights.importance import importance
from studies.insights.likely import likely, ridge
from studies.insights.pairs import cells, interactions
from studies.insights.price import box, constraint_prices, price_curve
from studies.insights.reading import kept_path, path_file, read_histories
from studies.insights.report import as_json, insights_of, summary
from studies.insights.suggestions import suggestions
from studies.insights.trends import DOTS, course, points, trends
from studies.insights.values import levels, short, value_scores
from studies.shown.pages import drawing
from studies.storage import storage_url
from tests.studies.insights.worlds import SPACE, of_values, planted, trial


def test_what_two_parameters_do_only_together_is_found():
    space = {name: CategoricalDistribution([0, 1]) for name in "abc"}
    rng, trials = np.random.default_rng(0), []
    for _ in range(150):
        params = {name: int(rng.integers(2)) for name in "abc"}
        trials.append(trial(params, float(params["a"] != params["b"]) + 0.1 * rng.normal(), space))
    found = history("xor", trials, ("v", "maximize"))
    pairs = interactions(found)
    assert set(pairs.iloc[0][["first", "second"]]) == {"a", "b"}
    assert pairs.iloc[0]["low"] > 0.2
    assert (pairs.iloc[1:]["low"] < 0.05).all()
    by_cell = cells(found, "a", "b").set_index(["first_value", "second_value"])
    assert by_cell.loc[("0", "1"), "mean"] == pytest.approx(1, abs=0.1)
    assert by_cell.loc[("1", "1"), "mean"] == pytest.approx(0, abs=0.1)
    assert by_cell["count"].sum() == 150


def test_a_trend_ends_where_the_scores_stand():
    found = planted(80)
    lines, scores = trends(found), value_scores(found)
    assert sorted(set(lines["trials"])) == [10, 20, 30, 40, 50, 60, 70, 80]
    last = lines[lines["trials"] == 80].set_index("parameter")
    for name, own in scores.groupby("parameter"):
        assert last.loc[name, "value"] == own.iloc[0]["value"]
        assert last.loc[name, "score"] == pytest.approx(own.iloc[0]["score"])
    best = lines.groupby("trials")["best"].first()
    assert best.is_monotonic_increasing


def test_likely_values_are_nearer_to_the_truth_than_measured_ones():
    rng, nearer, better = np.random.default_rng(0), [], []
    for _ in range(20):
        space, trials, truth = {f"x{i}": CategoricalDistribution([0, 1, 2]) for i in range(3)}, [], []
        for number in range(60):
            params = {name: int(rng.integers(3)) for name in space}
            truth.append(0.3 * sum(params.values()))
            trials.append(trial(params, truth[-1] + rng.normal(), space))
            trials[-1].number = number
        found = likely(history("noisy", trials, ("v", "maximize")))
        true = np.array(truth)[found["number"]]
        nearer.append(np.mean((found["likely"] - true) ** 2) < np.mean((found["value"] - true) ** 2))
        lucky = found.loc[found["rank"].idxmin(), "number"]
        better.append(true[0] - truth[lucky])
    assert all(nearer)
    assert np.mean(better) > 0.1


@pytest.mark.parametrize(("trials", "kinds"), [(12, (3, 4)), (60, (2, 5, 3)), (9, (6, 7)), (400, (4, 4, 4, 1))])
def test_the_ridge_is_that_of_scikit_learn(trials, kinds):
    from sklearn.linear_model import BayesianRidge

    rng = np.random.default_rng(trials)
    effects = np.hstack([np.eye(kind)[rng.integers(kind, size=trials)] for kind in kinds])
    gains = effects @ rng.normal(size=effects.shape[1]) + rng.normal(size=trials)
    gains = (gains - gains.mean()) / gains.std()
    model = BayesianRidge(max_iter=2000, tol=1e-8).fit(effects, gains)
    mean, spread = model.predict(effects, return_std=True)
    found = ridge(effects, gains)
    assert found[0] == pytest.approx(mean, abs=1e-6)
    assert found[1] ** 2 == pytest.approx(spread**2 - 1 / model.alpha_, abs=1e-6)


def test_likely_is_mirrored_when_minimising():
    up, down = (likely(planted(40, maximize=way)) for way in (True, False))
    assert list(up["number"]) == list(down["number"])
    assert up["likely"].to_numpy() == pytest.approx(-down["likely"].to_numpy())


def test_what_a_constraint_costs_is_read_off_the_trials():
    space = {"x": FloatDistribution(0, 1)}
    trials = [trial({"x": x}, x, space, {"size": x - 0.55, "other": -1.0}) for x in np.linspace(0, 1, 11)]
    found = history("h", trials, ("v", "maximize"))
    row = constraint_prices(found).set_index("constraint").loc["size"]
    assert (row["with_it"], row["without_it"], bool(row["binds"])) == (0.5, 1.0, True)
    assert row["price"] == pytest.approx(0.5)
    assert not constraint_prices(found).set_index("constraint").loc["other", "binds"]
    curve = price_curve(found)
    size = curve[curve["constraint"] == "size"]
    assert size["best"].is_monotonic_increasing
    assert size["best"].to_numpy() == pytest.approx(size["violation"].to_numpy() + 0.55)


def test_the_box_holds_what_is_within_an_error_of_the_best():
    space = {"x": FloatDistribution(0, 1), "kind": CategoricalDistribution(["a", "b"])}
    trials = [
        trial({"x": x, "kind": "ab"[i % 2]}, -((x - 0.5) ** 2), space) for i, x in enumerate(np.linspace(0, 1, 21))
    ]
    found = box(history("h", trials, ("v", "maximize")), 0.011).set_index("parameter")
    assert found.loc["x", ["low", "high"]].tolist() == pytest.approx([0.4, 0.6])
    assert found.loc["kind", "values"] == "a, b"
    assert (found.loc["x", "inside"], found.loc["x", "tried"]) == (5, 21)


def suggested(found):
    return suggestions(found, value_scores(found), importance(found), likely(found))


def test_suggestions_are_new_points_of_the_space_with_reasons():
    found = planted(100, noise=1.0)
    known = {tuple(row) for row in found.trials[["params_strong", "params_weak", "params_none"]].to_numpy().tolist()}
    made = suggested(found)
    assert made
    for one in made:
        optuna.create_trial(
            params=one.params, distributions={n: p.distribution for n, p in found.parameters.items()}, value=0.0
        )
        assert tuple(one.params[name] for name in ("strong", "weak", "none")) not in known
        assert one.reason
        assert one.change.items() <= one.params.items()


def test_a_leading_value_that_the_best_trial_lacks_is_suggested():
    pairs = [("a", 1 + i / 100) for i in range(10)] + [("b", 0.0)] * 20 + [("b", 5.0)]
    space = {"x": CategoricalDistribution(["a", "b"]), "y": CategoricalDistribution(["c", "d"])}
    trials = [trial({"x": x, "y": "d" if v == 5 else "c"}, v, space) for x, v in pairs]
    found = history("h", trials, ("v", "maximize"))
    first = suggested(found)[0]
    assert (first.kind, first.change, first.params) == ("improve", {"x": "a"}, {"x": "a", "y": "d"})
    assert "9 of 10 trials with x a are good" in first.reason or "8 of 10 trials with x a are good" in first.reason


def test_no_suggestion_is_backed_by_one_lucky_trial():
    found = of_values("batch", [(1024, 0.070), *((2048, 0.032 + 0.001 * i) for i in range(-4, 5))])
    assert [one for one in suggested(found) if one.kind in ("improve", "together")] == []


def test_nothing_is_suggested_without_a_feasible_trial():
    space = {"x": CategoricalDistribution(["a", "b"])}
    assert suggested(history("h", [trial({"x": "a"}, 1, space, {"c": 1.0})], ("v", "maximize"))) == []


def test_studies_of_other_scales_are_compared_by_rank():
    one, other = planted(100, seed=1), planted(100, seed=2, maximize=False)
    other.trials[["value", "gain"]] *= 100
    both = together([one, other])
    assert len(both.trials) == 200
    assert sorted(both.trials["gain"]) == pytest.approx(sorted([(i + 0.5) / 100 for i in range(100)] * 2))
    assert next(iter(importance(both)["parameter"])) == "strong"


def test_of_several_studies_each_trial_says_which_it_is_of():
    one, other = planted(40, seed=1), replace(planted(40, seed=2), name="other")
    both = together([one, other])
    shrunken = likely(both)
    assert list(shrunken)[:2] == ["study", "number"]
    assert len(shrunken[["study", "number"]].drop_duplicates()) == 80
    assert "study" not in likely(one)
    assert summary(both)["best"]["study"] in ("planted", "other")
    lucky = shrunken.iloc[0]
    mine = both.trials[(both.trials["study"] == lucky["study"]) & (both.trials["number"] == lucky["number"])].iloc[0]
    found = [one for one in suggested(both) if one.kind == "likely"]
    assert all(one.params["weak"] == mine["params_weak"] for one in found)
    assert all(f"of {lucky['study']} is the likely best" in one.reason for one in found)
    assert len(found) == (lucky["rank"] != 1)


def test_a_summary_counts_trials_by_how_they_ended():
    made = [trial({"x": 0.5}, 1.0, {"x": FloatDistribution(0, 1)})]
    made += [optuna.create_trial(state=state) for state in (TrialState.PRUNED, TrialState.PRUNED, TrialState.FAIL)]
    found = history("h", made, ("v", "maximize"))
    told = summary(found)
    assert [told[f"{name}_experiments"] for name in ("total", "complete", "pruned", "failed")] == [4, 1, 2, 1]
    assert points(found)["value"].tolist() == [1.0]


def test_many_trials_are_thinned_to_points_with_both_ends():
    found = points(planted(2000))
    assert len(found) == DOTS
    assert (found["number"].iloc[0], found["number"].iloc[-1]) == (0, 1999)


@pytest.mark.parametrize(("text", "side"), [(">= 0.5", ">="), ("<= 0.5", "<=")])
def test_a_price_says_which_side_its_bound_is_on(text, side):
    bound = parse_constraint("size", text)
    trials = [trial({"x": x}, x, {"x": FloatDistribution(0, 1)}, {"size": bound.violation(x)}) for x in (0.2, 0.4, 0.8)]
    found = replace(history("h", trials, ("v", "maximize")), bounds={"size": bound})
    assert constraint_prices(found)["side"].tolist() == [side]
    bounds = price_curve(found)["bound"].tolist()
    assert bounds == pytest.approx([0.8] if side == ">=" else [0.2, 0.4, 0.8])


def test_long_values_are_cut_in_reasons_and_warnings_alone():
    long = '[{"head": {"kind": "logistic", "c": 0.1}}, {"adapter": {"rank": 8}}]'
    found = of_values("arms", [(long, i % 7) for i in range(12)])
    assert value_scores(found)["value"].tolist() == [long]
    warning = importance(found)["warning"].iloc[0]
    assert long not in warning
    assert long[:40] in warning
    assert (short(long, 10), short("0123456789", 10)) == (long[:9] + "…", "0123456789")


def test_what_nothing_reads_is_missing_and_asked_once_for_points_alike():
    from search_spaces import chain_space

    rooms = chain_space(["prompt", "head", "adapter", "calibration"])
    distributions = rooms.distributions("causal")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    idle = _Idle(rooms, distributions)
    for _ in range(300):
        params = study.ask(dict(distributions)).params
        assert idle.at(params) == _Idle(rooms, distributions).at(params)
        assert idle.at(params) <= rooms.idle(params)
    params = {"gamma": 0.0, "prior_mode": "user", "kappa": 2.0}
    named = {name: distributions[name] for name in params}
    made = optuna.create_trial(params=params, distributions=named, value=1.0)
    table = history("h", [made], ("v", "maximize"), rooms).trials
    assert table["params_gamma"].tolist() == [0.0]
    assert table["params_prior_mode"].isna().all()


@pytest.mark.parametrize(("direction", "sign"), [("maximize", 1), ("minimize", -1)])
def test_the_course_is_the_best_feasible_value_so_far(direction, sign):
    values = [(3, 1), (9, -1), (2, -1), (5, -1), (5, -1), (4, -1)]
    trials = [trial({"strong": 0.5}, sign * v, {"strong": SPACE["strong"]}, {"c": broken}) for v, broken in values]
    for number, made in enumerate(trials):
        made.number = number
    found = course(history("h", trials, ("v", direction)))
    assert list(found["trials"]) == [2, 6]
    assert list(found["number"]) == [1, 5]
    assert list(found["best"]) == [sign * 9, sign * 9]
    assert len(course(history("h", trials[:1], ("v", direction)))) == 0
    assert len(course(history("h", [], ("v", direction)))) == 0
    later = course(history("h", trials[2:], ("v", direction)))
    assert list(zip(later["trials"], later["best"], strict=True)) == [(1, sign * 2), (2, sign * 5), (4, sign * 5)]


@pytest.mark.parametrize(
    ("choices", "labels"),
    [
        ((0.999, 0.9991, 0.9999, 0.99995), ["0.999", "0.9991", "0.9999", "1"]),
        (("1", 1), ["'1'", "1"]),
        ((0.1, 0.2), ["0.1", "0.2"]),
    ],
)
def test_values_that_look_alike_are_told_apart(choices, labels):
    found = of_values("x", [(choice, i) for i in range(4) for choice in choices])
    scores = value_scores(found)
    assert sorted(scores["value"]) == sorted(labels)
    assert [one for one in suggested(found) if one.kind == "explore"] == []


def test_bins_that_look_alike_are_told_apart():
    space = {"x": FloatDistribution(0, 1)}
    found = history("h", [trial({"x": 0.5 + i * 1e-6}, i, space) for i in range(40)], ("v", "maximize"))
    labels = value_scores(found)["value"]
    assert labels.nunique() == len(labels) == 5


def test_choices_that_are_told_by_named_ranges_were_tried_as_often_as_they_were():
    space = {"l2": CategoricalDistribution([0.0, 0.001, 0.01, 0.1]), "y": CategoricalDistribution(["c", "d"])}
    trials = [trial({"l2": x, "y": "c"}, i, space) for i in range(4) for x in space["l2"].choices]
    trials += [trial({"l2": 0.0, "y": "d"}, 9 + i, space) for i in range(3)]
    found = history("h", trials, ("v", "maximize"))
    assert set(levels(found.parameters["l2"], found.trials["params_l2"]).labels) == {"none", "light", "medium", "heavy"}
    assert [one for one in suggested(found) if one.kind == "explore"] == []


def test_a_choice_of_none_is_suggested_as_it_is():
    pairs = [(None, 1 + i / 100) for i in range(10)] + [("b", 0.0)] * 20 + [("b", 5.0)]
    space = {"x": CategoricalDistribution([None, "b"]), "y": CategoricalDistribution(["c", "d"])}
    trials = [trial({"x": x, "y": "d" if v == 5 else "c"}, v, space) for x, v in pairs]
    assert suggested(history("h", trials, ("v", "maximize")))[0].change == {"x": None}


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_none(value):
    space = {"x": FloatDistribution(0, 1)}
    trials = [trial({"x": i / 20}, i, space) for i in range(20)] + [trial({"x": 1.0}, value, space)]
    found = history("h", trials, ("v", "maximize"))
    told = as_json(found, insights_of(found))
    assert (told["complete_experiments"], told["failed_experiments"], told["feasible_experiments"]) == (20, 1, 20)
    assert told["best"]["value"] == 19


@pytest.mark.parametrize("values", [(1e308, -1e308), (1e-310, 2e-310), (1e308, 1.0), (5e-324, 0.0)])
def test_values_at_the_ends_of_what_a_float_holds_are_told_as_measured(values):
    space = {"x": FloatDistribution(0, 1), "k": CategoricalDistribution(["a", "b"])}
    trials = [trial({"x": i / 20, "k": "ab"[i % 2]}, values[i % 2], space, {"c": -0.5}) for i in range(20)]
    for number, made in enumerate(trials):
        made.number = number
    found = history("h", trials, ("v", "maximize"))
    told = as_json(found, insights_of(found))
    assert told["likely"][0]["likely"] == max(values)
    assert told["points"]
    drawn = drawing.curve(told["course"], "number", "best", dots=told["points"])
    assert "nan" not in json.dumps(drawn).lower()
    assert "infinity" not in json.dumps(drawn).lower()


@pytest.mark.parametrize("name", ["count", "mean", "good_count", "first", "value", "trials"])
def test_a_parameter_may_be_called_like_a_statistic(name):
    space = {key: CategoricalDistribution([0, 1]) for key in (name, "other")}
    trials = [trial({name: i % 2, "other": i // 2 % 2}, float(i % 2 != i // 2 % 2), space) for i in range(40)]
    found = history("h", trials, ("v", "maximize"))
    grid = drawing.table_of(as_json(found, insights_of(found))["cells"])
    assert {grid["first"], grid["second"]} == {name, "other"}
    assert [[cell["mean"] for cell in row["cells"]] for row in grid["rows"]] == [[0, 1], [1, 0]]
    assert sum(cell["count"] for row in grid["rows"] for cell in row["cells"]) == 40


@pytest.mark.parametrize(
    "attrs",
    [
        {"measured": 3}, {"measured": {"metrics": [1]}}, {"measured": {"metrics": {"a": "b"}, "fields": 3}},
        {"measured": {"duplicate_of": [1]}}, {"foreign_items": 3}, {"foreign_items": {"a": 3}},
    ],
)  # fmt: skip
def test_attributes_of_others_that_are_named_like_ours_are_not_read(tmp_path, attrs):
    url = f"sqlite:///{tmp_path / 'other.db'}"
    study = optuna.create_study(storage=url, study_name="theirs")
    study.add_trials([trial({"x": i / 12}, i, {"x": FloatDistribution(0, 1)}, attrs=attrs) for i in range(12)])
    (found,) = read_histories(["theirs"], tmp_path, url)
    assert list(found.parameters) == ["x"]
    assert as_json(found, insights_of(found))["feasible_experiments"] == 12
    import_optuna(url, "theirs", None, (tmp_path / "home", None))
    kept = optuna.load_study(study_name="theirs", storage=storage_url(tmp_path / "home", None)).trials
    assert {"measured", "foreign_items"}.isdisjoint(kept[0].user_attrs)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"steps": 3}', b'{"steps": [{"gain": 1}]}', b"\xff"])
def test_what_is_no_path_is_none(tmp_path, content):
    file = path_file(tmp_path, "s")
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    assert kept_path(tmp_path, "s") is None
