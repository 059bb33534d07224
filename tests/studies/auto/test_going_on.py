"""A race that goes on: after an interruption, a failed arm, with more minutes, or without its journal."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from optuna.trial import create_trial

from personalization.errors import DataError, UsageError
from studies.auto import ending, pooling, routing
from studies.auto import race as races
from studies.auto.allocation import Standing
from studies.auto.arms import ARMS, Scene
from studies.auto.clock import TimeUp
from studies.auto.judging import Entry, Judge, judge, measure, unmeasured
from studies.auto.plan import Plan
from studies.auto.race import Race
from studies.runner import Stopped, StopRequest


@pytest.fixture
def race(tmp_path, monkeypatch):
    """A race of a causal model with half of its time left."""
    found = Race(Plan("race", {}, 1.0), tmp_path)
    found.scene = Scene("causal", 1, 1, 1.0, 1.0, 1.0, 1.0)
    found.sizes = np.array([1, 1])
    monkeypatch.setattr(Race, "left_s", 30.0)
    monkeypatch.setattr(races, "judge", lambda *_: None)
    monkeypatch.setattr(races, "own_trials", lambda *_: [])
    monkeypatch.setattr(races, "tend", lambda _: None)
    monkeypatch.setattr(Race, "base", SimpleNamespace(storage=None, spec=SimpleNamespace(storage=None)))
    return found


def entered(race, name, standing=None, **kept):
    study = optuna.create_study()
    spec = SimpleNamespace(model_copy=lambda update: SimpleNamespace(**update))
    opened = SimpleNamespace(study=study, spec=spec)
    race.entries[name] = Entry(ARMS[name], opened, standing=standing)
    race.journal.arm(name).update(kept)
    return race.entries[name]


CUT = [(True, None, True), (False, None, False), (True, "failed: x", False)]


@pytest.mark.parametrize(("cut", "fate", "again"), CUT)
def test_an_arm_whose_first_trial_was_interrupted_gets_more_time_at_the_end(race, monkeypatch, cut, fate, again):
    race.arms = [ARMS["lora"]]
    entered(race, "lora", slices=[{"trials": 0, "seconds": 9.0, "cut": cut}], fate=fate)
    sliced = []
    monkeypatch.setattr(Race, "_slice", lambda race, entry, request: sliced.append(entry.arm.name))
    assert race._late(StopRequest()) is again
    assert sliced == ["lora"] * again


def test_an_arm_that_cannot_be_opened_does_not_keep_others_from_the_time_left(race, monkeypatch):
    race.arms = [ARMS["head"], ARMS["lora"]]
    begun = []

    def enter(race, arm, request):
        begun.append(arm.name)
        if arm.name == "head":
            race.out("head", "failed: its space is another one")
        else:
            entered(race, arm.name)

    monkeypatch.setattr(Race, "enter", enter)
    assert race._late(StopRequest())
    assert begun == ["head", "lora"]
    assert not race._late(StopRequest())
    assert begun == ["head", "lora"]


def test_an_arm_that_fails_in_a_later_slice_is_out_and_the_race_goes_on(race, monkeypatch):
    entry = entered(race, "lora", Standing("lora", np.array([1.0, 0.0])))

    def fail(*_):
        raise DataError("the loss is nan")

    monkeypatch.setattr(Race, "_run_slice", fail)
    race._slice(entry, StopRequest())
    assert race.journal.arm("lora")["fate"] == "failed: the loss is nan"
    assert entry.standing.done


@pytest.mark.parametrize(("there", "wanted"), [(0, 3), (2, 4), (3, 6), (30, 40)])
def test_a_first_slice_brings_new_trials_whatever_is_there(race, monkeypatch, there, wanted):
    entry, asked = entered(race, "lora"), []
    entry.opened.study.add_trials([create_trial(value=0.5) for _ in range(there)])
    monkeypatch.setattr(races, "replace", lambda opened, spec: asked.append(spec.trials))
    monkeypatch.setattr(races, "work_on", lambda *_: None)
    monkeypatch.setattr(races, "rival", lambda *_: None)
    monkeypatch.setattr(races, "first_lift", lambda *_: 0.0)
    monkeypatch.setattr(races, "unmeasured", lambda entry: "")
    monkeypatch.setattr(races, "measure", lambda *_: None)
    race._run_slice(entry, StopRequest())
    assert asked == [wanted]


def test_measuring_an_arm_is_part_of_its_slice_and_ends_with_it(race, monkeypatch):
    entry = entered(race, "lora-user")

    def long(*_):
        raise TimeUp

    monkeypatch.setattr(races, "replace", lambda opened, spec: None)
    monkeypatch.setattr(races, "work_on", lambda *_: None)
    monkeypatch.setattr(races, "rival", lambda *_: None)
    monkeypatch.setattr(races, "first_lift", lambda *_: 0.0)
    monkeypatch.setattr(races, "unmeasured", lambda entry: "")
    monkeypatch.setattr(races, "measure", long)
    race._run_slice(entry, StopRequest())
    assert race.journal.arm("lora-user")["slices"][0]["cut"]
    assert entry.standing is None


def test_what_was_tried_before_a_signal_is_kept(race, monkeypatch):
    entry, request = entered(race, "lora"), StopRequest(lambda: True)

    def tries(*_):
        entry.opened.study.add_trials([create_trial(value=0.5) for _ in range(2)])

    monkeypatch.setattr(races, "replace", lambda opened, spec: None)
    monkeypatch.setattr(races, "work_on", tries)
    monkeypatch.setattr(races, "rival", lambda *_: None)
    with pytest.raises(Stopped):
        race._slice(entry, request)
    assert [one["trials"] for one in race.journal.arm("lora")["slices"]] == [2]


def test_a_slice_that_a_signal_ends_before_its_first_trial_had_not_begun(race, monkeypatch):
    entry, request = entered(race, "lora"), StopRequest(lambda: True)
    monkeypatch.setattr(races, "replace", lambda opened, spec: None)
    monkeypatch.setattr(races, "work_on", lambda *_: request.by)
    monkeypatch.setattr(races, "rival", lambda *_: None)
    with pytest.raises(Stopped):
        race._slice(entry, request)
    assert race.journal.arm("lora")["slices"] == []


@pytest.mark.parametrize(("seconds", "cut"), [(100.0, True), (0.0, False)])
def test_an_arm_whose_slice_went_by_before_its_first_trial_is_not_done(race, monkeypatch, seconds, cut):
    entry = entered(race, "lora")
    monkeypatch.setattr(races, "replace", lambda opened, spec: None)
    monkeypatch.setattr(races, "work_on", lambda *_: setattr(race.journal, "_before", seconds))
    for name in ("rival", "measure"):
        monkeypatch.setattr(races, name, lambda *_: None)
    race._run_slice(entry, StopRequest())
    kept = race.journal.arm("lora")
    assert (kept["slices"][0]["cut"], kept["done"]) == (cut, not cut)


def test_what_a_killed_first_slice_had_tried_is_judged_whatever_the_next_trial_costs(race, monkeypatch):
    study = optuna.create_study()
    study.add_trial(create_trial(value=0.5))
    monkeypatch.setattr(races, "own_trials", lambda base, name: study.trials if name == "race.lora" else [])
    monkeypatch.setattr(Race, "_cost", lambda race, arm: 1e9)
    monkeypatch.setattr(Race, "_open", lambda race, arm, request: entered(race, arm.name))
    monkeypatch.setattr(Race, "_slice", lambda race, entry, request: pytest.fail("there is no time for it"))
    monkeypatch.setattr(races, "queue_first", lambda *_: None)
    done, tended = [], []
    monkeypatch.setattr(races, "measure", lambda entry, base: done.append(entry.arm.name))
    monkeypatch.setattr(races, "tend", tended.append)
    race.arms = [ARMS["lora"], ARMS["head"]]
    race.journal.arm("lora")
    race.journal.arm("head")
    race._reopen(StopRequest())
    assert done == ["lora"]
    assert tended == [race.entries["lora"].opened]
    assert [one["trials"] for one in race.journal.arm("lora")["slices"]] == [1]
    assert race.offered == {"lora"}


def test_a_pair_whose_first_trial_was_interrupted_goes_on_at_the_end(race, monkeypatch):
    entry = entered(race, "prompt", slices=[{"trials": 0, "seconds": 9.0, "cut": True}])
    entry.arm = replace(entry.arm, start_from="lora")
    sliced = []
    monkeypatch.setattr(Race, "_slice", lambda race, entry, request: sliced.append(entry.arm.name))
    assert race._late(StopRequest())
    assert sliced == ["prompt"]


def test_with_nothing_else_to_do_a_promising_arm_may_take_as_much_as_any(race):
    race.share = races.LATE
    assert race._share_of(ARMS["lora"]) == race._share_of(ARMS["head"]) == races.LATE


def test_an_arm_that_gains_leads_before_one_that_does_not(race):
    alone = Standing("lora", np.array([np.nan, -0.1]))
    entered(race, "similar", Standing("similar", np.array([1.0, -0.5])))
    entered(race, "lora", alone)
    assert race.best().arm.name == "similar"
    race.entries["similar"].standing = None
    assert race.best().standing is alone


def test_an_arm_that_may_overtake_again_is_not_said_to_be_out(race, monkeypatch):
    monkeypatch.setattr("studies.auto.race.routing.kept_s", lambda race: 0.0)
    monkeypatch.setattr("studies.auto.race.pooling.kept_s", lambda race: 0.0)
    race.sizes = np.full(30, 4)
    far, near = np.linspace(2.0, 3.0, 30), np.linspace(0.1, 0.2, 30)
    entered(race, "similar", Standing("similar", far, 1.0), slices=[{"trials": 1}])
    entered(race, "head", Standing("head", near, 1.0), slices=[{"trials": 1}])
    race._following()
    assert race.journal.arm("head")["fate"] == "out: cannot overtake similar any more"
    race.entries["similar"].standing = Standing("similar", near[::-1], 1.0)
    race._following()
    assert race.journal.arm("head")["fate"] is None


@pytest.mark.parametrize(("slices", "begun"), [([], []), ([{"trials": 1}], ["mean"])])
def test_a_mean_that_was_measured_needs_no_time_to_be_measured_again(race, monkeypatch, slices, begun):
    monkeypatch.setattr(pooling, "needed_s", lambda *_: 1e9)
    arm, asked = SimpleNamespace(name="mean", says="the mean"), []
    monkeypatch.setattr(pooling, "pooling_arm", lambda arms: arm)
    monkeypatch.setattr(pooling, "begun", lambda race, arm, *_: asked.append(arm.name))
    entered(race, "similar")
    entered(race, "head")
    race.journal.arm("mean").update(members=["head", "similar"], slices=slices)
    pooling.pool(race, StopRequest())
    assert asked == begun


def test_a_promotion_that_comes_to_no_end_is_the_verdict(race, monkeypatch):
    entry = entered(race, "similar", Standing("similar", np.array([1.0, 1.0])))
    entry.opened = SimpleNamespace(spec=SimpleNamespace(name="race.similar", storage=None, model_copy=lambda update: 0))
    monkeypatch.setattr(ending, "replace", lambda opened, spec: None)

    def refused(*_, **__):
        raise UsageError("the config to be replaced cannot be used")

    def late(*_, **__):
        raise TimeUp

    monkeypatch.setattr(ending, "promote", refused)
    told = {"promoted": False, "confirm": None}
    assert ending.promote_leader(race, Path("out")) == {**told, "reason": "the config to be replaced cannot be used"}
    monkeypatch.setattr(ending, "promote", late)
    found = ending.promote_leader(race, Path("my out"))
    assert f"`chamtune promote race.similar --out 'my out' --home {race.home}` ends it" in found["reason"]


def test_a_goal_that_no_promotion_can_test_is_refused_at_once():
    with pytest.raises(UsageError, match="the race news optimises helped, which says nothing about right answers"):
        Plan("news", {"optimize": {"helped": "maximize"}}, 1.0)


def test_a_signal_ends_what_opens_a_study_and_no_running_trial(race, monkeypatch):
    kept, asked = [], []

    def opening(spec, home, progress, beside):
        kept.append(progress)
        progress(1, 2)
        return "opened"

    monkeypatch.setattr(races, "open_study", opening)
    monkeypatch.setattr(Plan, "spec_of", lambda *_: None)
    request = StopRequest(lambda: bool(asked))
    race._open(ARMS["calibration"], request)
    asked.append("stop")
    kept[0](2, 2)
    race.entries.clear()
    with pytest.raises(Stopped):
        race._open(ARMS["calibration"], request)


def test_an_arm_that_was_not_afforded_and_is_now_is_no_longer_said_not_to_be(race, monkeypatch):
    race.journal.arm("calibration")["fate"] = "not afforded: a first trial takes about 9 min"
    monkeypatch.setattr(Race, "_open", lambda race, arm, request: entered(race, arm.name))
    monkeypatch.setattr(Race, "_slice", lambda race, entry, request: None)
    monkeypatch.setattr(races, "queue_first", lambda *_: None)
    race.enter(ARMS["calibration"], StopRequest())
    assert race.journal.arm("calibration")["fate"] is None


def test_without_select_users_what_learned_from_tune_users_is_not_judged(monkeypatch):
    monkeypatch.setattr("studies.auto.judging.settled", lambda opened, params: params)
    splits = {"tune": SimpleNamespace(questions=("q",)), "select": SimpleNamespace(questions=())}
    study = optuna.create_study(direction="maximize")
    study.add_trial(create_trial(value=0.5, constraints={}))
    opened = SimpleNamespace(
        study=study,
        spec=SimpleNamespace(optimize={"accuracy": "maximize"}),
        rooms=SimpleNamespace(decode=lambda params: params),
        objective=SimpleNamespace(learned_labels=lambda params: True),
        splits=SimpleNamespace(part=splits.get, **splits),
    )
    entry = Entry(ARMS["lora"], opened)
    measure(entry, opened)
    judge(entry, opened, [Judge("tune", "u")], {"slices": []})
    assert entry.standing is entry.trial is None
    assert unmeasured(entry) == "out: there are no select users to judge it by"


def test_the_arms_of_a_mean_are_found_in_its_study_where_the_journal_is_gone(race, monkeypatch):
    monkeypatch.setattr(routing, "study_names", lambda storage: ["race.mean"])
    monkeypatch.setattr(routing, "find_study", lambda *_: "study")
    monkeypatch.setattr(routing, "stored_spec", lambda study: SimpleNamespace(space={"route.arms": "[1]"}))
    entry = entered(race, "similar")
    asked = []
    monkeypatch.setattr(Race, "enter", lambda race, arm, request: asked.append(arm.space["route"]["arms"]))
    arm = SimpleNamespace(name="mean", space={"route": {"arms": "[2]"}})
    monkeypatch.setattr(routing, "replace", lambda arm, space: SimpleNamespace(name=arm.name, space=space))
    routing.begun(race, arm, [entry], StopRequest())
    assert asked == ["[1]"]


def test_a_mean_that_was_begun_is_of_the_same_arms_again(race):
    entered(race, "similar")
    entered(race, "head")
    race.journal.arm("mean")["members"] = ["head", "similar"]
    assert [entry.arm.name for entry in routing.held(race, "mean")] == ["head", "similar"]
    assert routing.held(race, "route") == []


def test_a_mean_of_an_arm_that_may_not_be_raced_any_more_is_not_begun_again(race, monkeypatch):
    monkeypatch.setattr(routing, "study_names", lambda storage: ["race.mean"])
    entry = entered(race, "similar")
    race.journal.arm("mean").update(members=["similar", "shared"], arms="[1]")
    arm = SimpleNamespace(name="mean", space={"route": {"arms": "[2]"}})
    assert routing.begun(race, arm, [entry], StopRequest()) is None
    assert race.journal.arm("mean")["fate"] == "out: it holds an arm that is not raced any more"


@pytest.mark.parametrize(("left", "told"), [(1.5, "more than 50% of the 2 s left"), (-3.0, "and no time is left")])
def test_an_arm_that_is_not_afforded_is_told_why(race, monkeypatch, left, told):
    monkeypatch.setattr(Race, "left_s", left)
    race.enter(ARMS["prompt"], StopRequest())
    assert race.journal.arm("prompt")["fate"] == f"not afforded: a first trial takes about 9 s, {told}"
