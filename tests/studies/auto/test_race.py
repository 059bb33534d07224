"""A race on a table, from the command to the page; its end, and going on with it."""

import csv
import json
import shutil
import time
from dataclasses import replace

import numpy as np
import optuna
import pytest

from cli import app
from objectives.classification import Classification
from personalization.errors import UsageError
from personalization.files import locked
from studies.auto import race as races
from studies.auto.allocation import Standing
from studies.auto.arms import ARMS, Scene
from studies.auto.clock import Journal
from studies.auto.costs import TrainingCost
from studies.auto.ending import NO_GAIN, NONE_MEASURED
from studies.auto.judging import Entry
from studies.auto.plan import Plan, data_of, listed
from studies.auto.race import Race
from studies.auto.routing import Routed
from studies.auto.table import table as table_of
from studies.recovery import POINT
from studies.runner import StopRequest
from tests.tickets import GERMAN, tickets


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A table, as people have it."""
    rows = tickets(GERMAN, customers=40, each=12)
    path = tmp_path_factory.mktemp("table") / "tickets.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.DictWriter(file, list(rows[0]), delimiter=";")
        lines.writeheader()
        lines.writerows(rows)
    return path


@pytest.fixture
def table(written, tmp_path, monkeypatch):
    """A folder with the table, which the test is in."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(written, tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Arms that have little to try, and a promotion for which little time is kept."""
    monkeypatch.setattr("studies.auto.ending.MARGIN_S", 1.0)
    for name, arm in ARMS.items():
        monkeypatch.setitem(ARMS, name, replace(arm, first=2, most=4))


def plan_of(home, encoder, minutes=2.0, stages=("prompt",), **spec):
    raw = {"model": {"path": str(encoder)}, "tracking": "none", "optimize": {"accuracy": "maximize"}, **spec}
    return Plan("race", {**data_of("tickets.csv", home), **raw}, minutes, stages)


@pytest.mark.slow
def test_from_a_table_to_a_page(table, tiny_encoder, capsys):
    app(["init", "tickets.csv"], "chamtune", standalone_mode=False)
    with open("tickets.yaml", "a", encoding="utf-8") as spec:
        spec.write("promotion: {beat_references: false}\n")
    capsys.readouterr()
    arguments = ["auto", "--data", "tickets.yaml", "--model", str(tiny_encoder), "--minutes", "2", "--home", "h"]
    arguments += ["--stage", "prompt", "--tracking", "none", "--json"]
    app(arguments, "chamtune", standalone_mode=False)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["promoted"], found["reason"]
    assert {"calibration", "similar", "shared", "wording"} <= {arm["arm"] for arm in found["arms"]}
    assert found["leader"] == found["arms"][0]["arm"]
    assert (table / "deploy" / "deploy.yaml").exists()
    page = (table / found["page"]).read_text(encoding="utf-8")
    assert f"{found['leader']} is worth it." in page
    assert "http" not in page.replace("http-equiv", "")  # nothing is loaded from elsewhere
    assert found["spent_s"] <= 1.1 * 60 * found["minutes"]
    for row in [row for row in found["arms"] if row["trials"]]:  # arms are studies that anybody can look at
        study = optuna.load_study(study_name=row["study"], storage=f"sqlite:///{table}/h/studies.db")
        kept = Journal(table / "h" / "auto" / f"{found['name']}.json").arm(row["arm"])["slices"]
        assert sum(one["trials"] for one in kept) == len([t for t in study.get_trials() if t.state.is_finished()])
    known = [row["items"] for row in found["cold_start"]["rows"]]
    assert known[0] == 0
    assert known[-1] == "all"
    assert "Accuracy on confirm users by the newest history items" in page
    with pytest.raises(UsageError, match="no such stage"):
        app([*arguments, "--stage", "promt"], "chamtune", standalone_mode=False)


@pytest.mark.slow
def test_a_curve_that_the_time_does_not_hold_is_left_out(table, tiny_encoder, monkeypatch):
    monkeypatch.setattr("studies.auto.ending.describing_s", lambda *_: 1e9)
    race = Race(plan_of(table / "h", tiny_encoder, promotion={"beat_references": False}), table / "h")
    verdict = race.run(table / "deploy")
    assert verdict["promoted"]
    assert verdict["cold_start"] is None


@pytest.mark.slow
def test_a_race_goes_on_where_it_was(table, tiny_encoder):
    class Killed(Exception):
        pass

    home, plan = table / "h", plan_of(table / "h", tiny_encoder)

    def kill(line):
        if line.startswith("similar:"):
            raise Killed

    with pytest.raises(Killed):
        Race(plan, home, say=kill).run(table / "deploy")
    spent = Journal(home / "auto" / "race.json").content["spent_s"]
    assert spent > 0
    said = []
    race = Race(plan, home, say=said.append)
    assert race.journal.spent_s >= spent
    verdict = race.run(table / "deploy")
    assert verdict is not None
    assert next(row["arm"] for row in table_of(race, verdict)["arms"]) == race.best().arm.name
    assert not any(line.startswith("calibration: 2 trials") for line in said)  # its first slice stands
    assert race.journal.arm("similar")["slices"]


@pytest.mark.slow
def test_a_pair_has_the_lower_stage_as_it_was_found_and_the_plain_baseline(table, tiny_encoder, monkeypatch):
    monkeypatch.setattr("studies.auto.pairing.PAIRED", 9)
    race = Race(plan_of(table / "h", tiny_encoder), table / "h")
    race.run(table / "deploy")
    pair, below = race.entries["wording+shared"], race.journal.arm("wording+shared")["fixed"]
    assert set(below) == {"prompt.template", "prompt.scale"}
    for trial in pair.opened.study.get_trials():
        prompt = pair.opened.rooms.decode(trial.params)["prompt"]
        assert (prompt.template, prompt.scale) == (below["prompt.template"], below["prompt.scale"])
    assert pair.opened.baseline.metrics == race.base.baseline.metrics


@pytest.mark.slow
def test_what_won_elsewhere_is_tried_first(table, tiny_encoder):
    home = table / "h"
    first = Race(plan_of(home, tiny_encoder, stages=("calibration",)), home)
    first.run(table / "deploy")
    plan = replace(plan_of(home, tiny_encoder, stages=("calibration",), seed=1), name="again", like=("race.similar",))
    second = Race(plan, home)
    second.run(table / "deploy2")
    trials = second.entries["similar"].opened.study.get_trials()
    assert any(t.user_attrs.get("carried_from", {}).get("study") == "race.similar" for t in trials)
    mine = max(t.value for t in trials if t.value is not None)
    assert mine >= max(t.value for t in first.entries["similar"].opened.study.get_trials() if t.value is not None)


@pytest.mark.slow
def test_what_won_in_our_own_studies_is_tried_first_and_once(table, tiny_encoder):
    home = table / "h"
    for minutes in (2.0, 2.5):
        race = Race(plan_of(home, tiny_encoder, minutes, stages=("calibration",)), home)
        race.run(table / "deploy")
    trials = race.entries["own"].opened.study.get_trials()
    wanted = [{full.partition(".")[2]: value for full, value in point.items()} for point in listed()["own"]["encoder"]]
    for trial, point in zip(trials, wanted, strict=False):
        assert point.items() <= trial.params.items()
    assert sum(trial.user_attrs.get(POINT) in wanted for trial in trials) == len(wanted)


@pytest.mark.slow
@pytest.mark.parametrize("holds", [True, False])
def test_users_are_routed_only_where_that_is_promised_and_holds_up(table, tiny_encoder, monkeypatch, holds):
    """The estimate is planted; what follows from it is not, but for the last test of it."""
    promise = Routed(0.1, (0.05, 0.15), 0.3)
    monkeypatch.setattr("studies.auto.routing.routed", lambda *_: promise)
    monkeypatch.setattr("studies.auto.routing.holds_up", lambda *_: promise if holds else Routed(0.0, (-0.1, 0.1), 0.3))
    home = table / "h"
    plan = plan_of(home, tiny_encoder, stages=("prompt", "route"), promotion={"beat_references": False})
    race = Race(plan, home)
    verdict = race.run(table / "deploy")
    route = race.entries["route"]
    assert route.opened.spec.chain == ("route",)
    assert len(route.params["route"].chains) == 3
    if holds:
        assert route.standing is not None
        assert race.journal.arm("route")["fate"] is None
    else:
        assert route.standing is None
        assert race.journal.arm("route")["fate"].startswith("out: +0.000 [-0.100, +0.100] over ")
        assert race.best().arm.name != "route"
    again = Race(plan, home)
    again.run(table / "deploy2")
    assert again.entries["route"].opened.record["id"] == route.opened.record["id"]
    assert verdict is not None


@pytest.mark.slow
def test_a_race_without_promise_routes_nobody(table, tiny_encoder, monkeypatch):
    monkeypatch.setattr("studies.auto.routing.routed", lambda *_: Routed(0.1, (-0.01, 0.2), 0.3))
    race = Race(plan_of(table / "h", tiny_encoder, stages=("prompt", "route")), table / "h")
    race.run(table / "deploy")
    assert "route" not in race.entries
    assert "route" not in race.journal.content["arms"]


@pytest.mark.slow
def test_time_that_nothing_else_needs_is_given_to_an_arm_that_takes_most_of_it(table, tiny_encoder, monkeypatch):
    for name in ("similar", "shared", "own"):
        monkeypatch.setitem(ARMS, name, replace(ARMS[name], passes=lambda scene: 1e9))
    monkeypatch.setitem(ARMS, "wording", replace(ARMS["wording"], passes=lambda scene: 66.0 / scene.pass_s))
    said = []
    race = Race(plan_of(table / "h", tiny_encoder), table / "h", say=said.append)  # of 120 s
    race.run(table / "deploy")
    first = next(at for at, line in enumerate(said) if line.startswith("wording: not afforded"))
    assert any(line.startswith("wording: ") and "trials" in line for line in said[first:])
    assert set(race.entries) == {"calibration", "wording"}
    assert not str(race.journal.arm("wording")["fate"]).startswith("not afforded")
    assert race.journal.arm("similar")["fate"].startswith("not afforded")


@pytest.mark.slow
def test_what_leads_is_put_together_before_what_costs_more_and_dear_arms_get_an_equal_part(
    table, tiny_encoder, monkeypatch
):
    monkeypatch.setattr("studies.auto.pairing.PAIRED", 9)
    monkeypatch.setattr(races, "PAIRED", 9)
    offered, seconds = [], {}
    enter, work_on = Race.enter, races.work_on

    def entered(self, arm, request):
        offered.append(arm.name)
        enter(self, arm, request)

    def worked(opened, *rest):
        seconds.setdefault(opened.spec.name, opened.spec.timeout_s)
        return work_on(opened, *rest)

    monkeypatch.setattr(Race, "enter", entered)
    monkeypatch.setattr(races, "work_on", worked)
    monkeypatch.setitem(ARMS, "own", replace(ARMS["own"], passes=lambda scene: 1.0 / scene.pass_s))
    race = Race(plan_of(table / "h", tiny_encoder, 1.0), table / "h")
    race.run(table / "deploy")
    assert offered.index("wording+shared") < offered.index("own")
    assert len(offered) == len(set(offered))
    assert seconds["race.calibration"] < 60 / 10
    again = Race(plan_of(table / "h", tiny_encoder, 1.0), table / "h")
    offered.clear()
    again._begin(StopRequest())
    assert set(offered) == set(race.entries)
    assert offered == [name for name in race.journal.content["arms"] if name in race.entries]
    alone = Race(replace(plan_of(table / "h", tiny_encoder, 1.0), mix_users=False), table / "h")
    alone._begin(StopRequest())
    assert "shared" in again.entries
    assert not any(entry.arm.mixes for entry in alone.entries.values())


def test_what_cannot_be_afforded_is_said(table, tiny_encoder, monkeypatch):
    for name in ("similar", "shared", "own", "wording"):
        monkeypatch.setitem(ARMS, name, replace(ARMS[name], passes=lambda scene: 1e9))
    race = Race(plan_of(table / "h", tiny_encoder), table / "h")
    race.run(table / "deploy")
    assert race.journal.arm("similar")["fate"].startswith("not afforded: a first trial takes about")
    assert set(race.entries) == {"calibration"}


def test_minutes_that_are_spent_are_said(table, tiny_encoder):
    plan = plan_of(table / "h", tiny_encoder, 0.1)
    journal = Journal(table / "h" / "auto" / "race.json")
    journal.path.parent.mkdir(parents=True, exist_ok=True)
    journal.content["spent_s"] = 60.0
    journal._before = 60.0
    journal.note()
    with pytest.raises(UsageError, match="are spent; give more with --minutes"):
        Race(plan, table / "h").run(table / "deploy")


def test_too_few_minutes_are_said(table, tiny_encoder, monkeypatch):
    def slow(*_):
        time.sleep(30)

    monkeypatch.setattr("studies.auto.race.open_study", slow)
    with pytest.raises(UsageError, match="too few to score the tune users once"):
        Race(plan_of(table / "h", tiny_encoder, 0.02), table / "h").run(table / "deploy")


@pytest.mark.parametrize("cut", [True, False])
def test_an_arm_whose_time_was_over_before_its_first_trial_goes_on_while_no_other_has_a_result(tmp_path, cut):
    race = Race(Plan("race", {}, 1.0), tmp_path)
    race.entries = {name: Entry(ARMS[name], None) for name in ("calibration", "similar")}
    race.journal.arm("calibration")["slices"].append({"trials": 0, "seconds": 1.0, "cut": cut})
    assert race._following() is (race.entries["calibration"] if cut else None)
    race.journal.content["spent_s"] = race.limit_s
    race.journal._before = race.limit_s
    assert race._following() is None


@pytest.mark.parametrize(("cost", "begun"), [(4.0, "prompt"), (6.0, "lora"), (7.5, "prompt")])
def test_an_arm_that_led_elsewhere_is_begun_while_it_fits(tmp_path, monkeypatch, cost, begun):
    race = Race(Plan("race", {}, 1.0), tmp_path)
    race.scene = Scene("causal", 1, 1, 1.0, 1.0, 1.0, cost - 1.0)
    race.waiting = [replace(ARMS["prompt"], passes=lambda scene: 3.0), ARMS["lora"]]
    monkeypatch.setattr(Race, "left_s", 10.0)  # 9 / 1.3 for a promising arm, 6.3 / 1.3 after the other
    assert race._rather(race.waiting[0]).name == begun
    race.waiting.insert(1, replace(ARMS["head"], passes=lambda scene: 3.5))
    assert race._rather(race.waiting[0]).name == ("head" if begun == "lora" else "prompt")  # the cheaper one first


@pytest.mark.parametrize(("each_s", "goes_on"), [(9.0, True), (11.0, False)])
def test_an_arm_whose_next_trial_would_be_interrupted_gets_no_more_time(tmp_path, monkeypatch, each_s, goes_on):
    race = Race(Plan("race", {}, 1.0), tmp_path)
    monkeypatch.setattr(Race, "_most_s", lambda race, arm: 10.0)
    monkeypatch.setattr(Race, "left_s", 15.0)
    race.sizes = np.array([1, 1])
    monkeypatch.setattr("studies.auto.race.routing.kept_s", lambda race: 0.0)
    monkeypatch.setattr("studies.auto.race.pooling.kept_s", lambda race: 0.0)
    for name, gains, done in (("calibration", [1.0, 0.5], True), ("lora", [0.5, 1.0], False)):
        race.entries[name] = Entry(ARMS[name], None, standing=Standing(name, np.array(gains), 2 * each_s, done=done))
        race.journal.arm(name)["slices"].append({"trials": 2, "seconds": 2 * each_s, "cut": False, "lift": 0.25})
    assert race._following() is (race.entries["lora"] if goes_on else None)


@pytest.mark.slow
def test_trainings_have_the_epochs_that_fit_and_keep_them_when_the_race_goes_on(table, tiny_encoder, monkeypatch):
    for name in ("lora-groups", "lora-user"):
        monkeypatch.delitem(ARMS, name)
    monkeypatch.setattr(races, "training_cost", lambda opened: TrainingCost(0.0, 35.0))
    said, stages = [], ("adapter",)
    Race(plan_of(table / "h", tiny_encoder, stages=stages), table / "h", say=said.append).run(table / "deploy")
    assert any(line.endswith("; trainings have 1 of 3 epochs") for line in said)
    monkeypatch.setattr(races, "training_cost", lambda opened: TrainingCost(0.0, 0.1))
    again = Race(plan_of(table / "h", tiny_encoder, 3.0, stages), table / "h")
    verdict = again.run(table / "deploy")
    lora, found = again.entries["lora"], table_of(again, verdict)
    assert lora.opened.spec.space["adapter.epochs"] == 1
    assert lora.standing is not None
    assert found["epochs"] == 1


@pytest.mark.slow
def test_a_trial_that_does_not_end_ends_with_the_time(table, tiny_encoder, monkeypatch):
    evaluate = Classification.evaluate

    def stuck(self, params, part="tune", report=None):
        if params["calibration"].prior_mode == "similar" and part == "tune":
            while True:
                time.sleep(0.01)
        return evaluate(self, params, part, report)

    monkeypatch.setattr(Classification, "evaluate", stuck)
    monkeypatch.delitem(ARMS, "own")  # would be stuck, too
    monkeypatch.setattr("studies.auto.ending.MARGIN_S", 6.0)  # a busy machine needs it for promoting
    plan = plan_of(table / "h", tiny_encoder, 0.5, ("calibration",), promotion={"beat_references": False})
    race = Race(plan, table / "h")
    started = time.monotonic()
    verdict = race.run(table / "deploy")
    assert verdict is not None
    assert verdict["study"] == "race.calibration"
    assert time.monotonic() - started < 1.1 * 30
    assert race.journal.arm("similar")["slices"][0]["cut"]


def test_a_study_to_begin_like_that_is_not_there_is_said_at_once(table, tiny_encoder):
    plan = replace(plan_of(table / "h", tiny_encoder), like=("nope",))
    with pytest.raises(UsageError, match="nope|no studies"):
        Race(plan, table / "h").run(table / "deploy")
    assert not (table / "h" / "studies.db").exists()


def test_a_race_is_run_by_one_process(table, tiny_encoder):
    race = Race(plan_of(table / "h", tiny_encoder), table / "h")
    with locked(table / "h" / "auto" / "race.lock"), pytest.raises(UsageError, match="race is run by another process"):
        race.run(table / "deploy")
    assert not race.entries


def test_arms_that_all_fail_are_not_said_to_be_no_better(table, tiny_encoder, monkeypatch):
    def broken(*_):
        raise UsageError("broken")

    plan = plan_of(table / "h", tiny_encoder, stages=("calibration",))
    monkeypatch.setattr("studies.auto.race.measure", broken)
    race = Race(plan, table / "h")
    assert race.run(table / "deploy") is None
    assert table_of(race, None)["reason"] == NONE_MEASURED != NO_GAIN
    assert all("broken" in arm["fate"] for arm in table_of(race, None)["arms"])
