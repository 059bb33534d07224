"""Studies over chains: stages together, and one study on top of another."""

import pytest

from personalization.errors import UsageError
from studies.runner import run_study
from studies.shown.show import describe_study, list_studies
from studies.spec import parse_spec
from studies.study import best_feasible, find_study, open_study

pytestmark = pytest.mark.usefixtures("no_results")
HEAD = {"head": "logistic", "blend": [0.5, 1.0], "level": "unified", "depth": 0.5, "c": 0.001}
CHOSEN = {"plain": ["calibration"], "items": ["prompt", "calibration"]}


def made_with(spec_of, **changes):
    """A chain in the place of an objective."""
    plain = spec_of().model_dump(exclude={"objective"}, exclude_none=True)
    return parse_spec({**plain, "constraints": {}, **changes}, "test")


def test_stages_are_searched_together_and_the_study_goes_on(tmp_path, spec_of):
    spec = made_with(spec_of, chain=["prompt", "head", "calibration"], space={**HEAD, "k": 0}, trials=4)
    assert run_study(spec, tmp_path).failed == 0
    again = run_study(spec.model_copy(update={"trials": 5}), tmp_path)
    assert (again.trials, again.failed) == (5, 0)
    opened = open_study(spec, tmp_path)
    assert {"blend", "beta", "prior_mode"} <= set(opened.space)
    (row,) = list_studies(tmp_path, None)
    assert row["objective"] == "prompt + head + calibration"
    assert {"blend", "beta", "prompt.ranking"} <= set(describe_study("small", tmp_path, None)["best"][0]["params"])


@pytest.mark.slow
def test_a_study_starts_from_the_best_of_another(tmp_path, spec_of):
    below = made_with(spec_of, name="below", chain=["head", "calibration"], space=HEAD, trials=6)
    run_study(below, tmp_path)
    best = max(find_study("below", tmp_path, None).get_trials(), key=lambda trial: trial.value)
    wanted = open_study(below, tmp_path).rooms.decode(best.params)["head"]
    spec = made_with(spec_of, name="above", chain=["head", "calibration"], start_from="below", trials=4)
    run_study(spec, tmp_path)
    opened = open_study(spec, tmp_path)
    assert not [name for name in opened.space if name in ("head", "c", "blend")]
    for trial in opened.study.get_trials():
        assert opened.rooms.decode(trial.params)["head"] == wanted
    run_study(below.model_copy(update={"trials": 9}), tmp_path)
    assert open_study(spec, tmp_path).rooms.decode({})["head"] == wanted


def test_a_route_chooses_between_the_best_chains_of_studies(tmp_path, spec_of):
    for name, chain in CHOSEN.items():
        run_study(made_with(spec_of, name=name, chain=chain, trials=3), tmp_path)
    spec = made_with(spec_of, name="both", chain=["route"], start_from=["plain", "items"], trials=2)
    assert run_study(spec, tmp_path).trials == 2
    opened = open_study(spec, tmp_path)
    assert list(opened.space) == ["answer", "penalty"]
    best = [open_study(made_with(spec_of, name=name, chain=chain), tmp_path) for name, chain in CHOSEN.items()]
    wanted = [one.rooms.decode(best_feasible(one).params) for one in best]
    for trial in opened.study.get_trials():
        assert list(opened.rooms.decode(trial.params)["route"].chains) == wanted
    nested = made_with(spec_of, name="nested", chain=["route"], start_from=["both", "plain"])
    with pytest.raises(UsageError, match="stage route cannot stand there"):
        open_study(nested, tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"chain": ["calibration", "prompt"]}, "its order is prompt, calibration, each once"),
        ({"chain": ["prompt", "prompt"]}, "its order is prompt, each once"),
        ({"chain": ["magic"]}, "no stage 'magic'; there are route, prompt, adapter, steering, head, calibration"),
        ({"chain": ["route", "calibration"]}, "route holds whole chains and stands alone"),
        ({"chain": ["calibration"], "objective": "steering"}, "give chain or objective, not both"),
        ({"start_from": "below"}, "start_from needs chain"),
        ({"chain": ["route"], "start_from": ["one", "one"]}, "a route chooses between two studies and more"),
        ({"chain": ["calibration"], "start_from": ["one", "other"]}, "other chains start from one"),
    ],
)
def test_a_chain_that_cannot_be_is_one_line(spec_of, changes, said):
    with pytest.raises(UsageError, match=said) as caught:
        made_with(spec_of, **changes)
    assert "\n" not in str(caught.value)


def test_what_a_study_cannot_start_from_is_one_line(tmp_path, spec_of):
    spec = made_with(spec_of, chain=["prompt", "calibration"], start_from="nothing")
    with pytest.raises(UsageError, match="no study 'nothing'"):
        open_study(spec, tmp_path)
    run_study(made_with(spec_of, name="nothing", chain=["calibration"], trials=1), tmp_path)
    with pytest.raises(UsageError, match="has no stage to begin prompt, calibration with"):
        open_study(spec, tmp_path)
