"""What a race measures before it begins."""

import csv
from types import SimpleNamespace

import numpy as np
import optuna
import pytest

from personalization.data.records import Dataset
from personalization.methods.adapters.user_adapters import UserAdapters
from personalization.methods.history.labelled import labelled_items
from search_spaces import chain_space
from studies.auto import costs, ending
from studies.auto.arms import ARMS, Scene, read, together
from studies.auto.costs import TrainingCost, epochs_of, measured, training_cost
from studies.auto.ending import MARGIN_S, SPARE, promoting_s
from studies.auto.judging import Entry
from studies.auto.plan import Plan, data_of
from studies.study import open_study
from tests.tickets import GERMAN, tickets


@pytest.fixture
def opened(tmp_path, monkeypatch, tiny_encoder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(costs.SAMPLED, "encoder", 12)
    rows = tickets(GERMAN, customers=20, each=12)
    with open("tickets.csv", "w", encoding="utf-8", newline="") as file:
        written = csv.DictWriter(file, list(rows[0]), delimiter=";")
        written.writeheader()
        written.writerows(rows)
    raw = {"model": {"path": str(tiny_encoder)}, "tracking": "none", "optimize": {"accuracy": "maximize"}}
    plan = Plan("race", {**data_of("tickets.csv", tmp_path / "h"), **raw}, 1.0)
    return open_study(plan.spec_of(ARMS["calibration"], "encoder"), tmp_path / "h")


def test_a_training_is_what_more_tokens_take_longer(opened, monkeypatch):
    now, sizes = 0.0, []

    def tokens(self, items, plan):
        return sum(10 + len({q.user_id for q in items.questions}) * (row > 0) for row, _ in enumerate(items.questions))

    def learn(self, dataset, plan, report=None, items=None):
        nonlocal now
        now += 5 + (0.25 + 0.5 * plan.epochs) * self.tokens(items, plan)  # what each training does once takes no part
        now += 0 if sizes else 1000  # nor what a process does once
        sizes.append((len(items), plan.epochs))

    monkeypatch.setattr(UserAdapters, "tokens", tokens)
    monkeypatch.setattr(UserAdapters, "learn", learn)
    monkeypatch.setattr(costs, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(costs, "COUNTED", 20)
    items = labelled_items(opened.splits.tune)
    counted = Dataset(items.task, items.labels, items.questions[:20])
    assert training_cost(opened) == pytest.approx(np.array([0.25, 0.5]) * tokens(None, counted, None) * len(items) / 20)
    assert sizes == [(6, 1), (6, 3), (18, 3), (18, 1)]
    scene = measured(opened)._replace(pass_s=2.0, training_s=30.0)
    assert ARMS["lora"].passes(scene) == 1 + 15
    assert ARMS["prefix"].passes(scene) == ARMS["lora-groups"].passes(scene) == 2 * (1 + 15)


@pytest.mark.parametrize(("seconds", "epochs"), [(100.0, 3), (34.0, 3), (33.9, 2), (24.0, 2), (23.9, 1), (0.0, 1)])
def test_a_training_has_the_epochs_that_fit(seconds, epochs):
    assert TrainingCost(4.0, 10.0).epochs_within(seconds) == epochs


def test_a_race_keeps_the_epochs_of_a_training_that_it_has_begun(opened):
    assert epochs_of(opened, ["race.lora", "race.lora-groups"], 1) == 1
    plan = Plan("race", {**data_of("tickets.csv", opened.home), "model": {"path": opened.spec.model.path}}, 1.0)
    open_study(plan.spec_of(ARMS["lora-groups"], "encoder", {"adapter.epochs": 2}), opened.home)
    assert epochs_of(opened, ["race.lora", "race.lora-groups"], 3) == 2
    assert epochs_of(opened, ["race.lora"], 3) == 3


def test_measuring_leaves_the_model_and_the_folders_as_they_were(opened):
    before = sorted(opened.home.rglob("*"))
    asked = opened.objective.work("tune").prompts[:8]
    spoken = opened.objective.work("tune").spoken
    bare = opened.scorer.unstored()
    scores = bare.label_logprobs(asked, spoken)
    training_cost(opened)
    opened.scorer.backbone.forget()
    assert (bare.label_logprobs(asked, spoken) == scores).all()
    assert sorted(opened.home.rglob("*")) == before


def test_few_items_cost_nothing_to_measure(opened, monkeypatch):
    monkeypatch.setitem(costs.SAMPLED, "encoder", 10_000)
    assert training_cost(opened) == (0, 0)


def test_the_fastest_of_a_seconds_runs_counts_and_one_that_is_longer_is_not_repeated(monkeypatch):
    now, takes = 0.0, [0.5, 0.25, 0.375, 2.0, 1.0, 0.5, 0.5, 0.75]

    def work():
        nonlocal now
        now += takes.pop(0)

    monkeypatch.setattr(costs, "time", SimpleNamespace(perf_counter=lambda: now))
    assert costs.fastest(work) == [0.25]
    assert costs.fastest(work) == [2.0]
    assert costs.fastest(work, work) == [0.5, 0.5]  # 1.0 and 0.5, and 0.5 and 0.75


def test_items_whose_states_are_kept_by_prompt_are_run_once():
    scene = Scene("causal", 100, 300, 50.0, 50.0, 1.0, 30.0)
    items = read(scene)
    assert ARMS["head"].again(scene) == items == ARMS["head"].passes(scene)
    assert ARMS["steering"].again(scene) == 2 * items == ARMS["steering"].passes(scene) - 1
    assert ARMS["calibration"].again(scene) == ARMS["lora"].again(scene) == 0
    assert together(ARMS["lora"], ARMS["head"]).again(scene) == 0  # the adapter is another one with other users
    assert together(ARMS["head"], ARMS["shared"]).again(scene) == items  # though a first trial finds them there


def test_a_head_of_all_users_reads_no_items_of_the_one_who_asks():
    scene = Scene("causal", 100, 300, 50.0, 50.0, 1.0, 30.0)
    space = chain_space(("head", "calibration"))
    of_all, of_each = (
        space.of_full({"head.head": "logistic", "head.blend": 0.5, "head.level": level})
        for level in ("unified", "user")
    )
    assert ARMS["head"].answering(scene, of_all) == 0
    assert ARMS["head"].answering(scene, of_each) == ARMS["head"].answering(scene) == read(scene) == 3
    assert together(ARMS["prompt"], ARMS["head"]).answering(scene, of_all) == ARMS["prompt"].answering(scene)


@pytest.mark.parametrize(
    ("arm", "level", "anew", "confirm"),
    [
        ("head", "unified", 0.25 * 3, 1),
        ("head", "user", 0, 1 + 3),
        ("steering", None, 1.25, 1 + 8),
        ("pair", "user", 0, 1 + 3),
    ],
)
def test_a_promotion_runs_again_what_is_not_kept(arm, level, anew, confirm, monkeypatch):
    monkeypatch.setattr(ending, "refits", lambda *_: True)
    monkeypatch.setattr(ending, "TIMED", 0)
    scene = Scene("causal", 100, 300, 50.0, 50.0, 1.0, 30.0)
    params = None
    if level is not None:
        params = chain_space(("head", "calibration")).of_full(
            {"head.head": "logistic", "head.blend": 0.5, "head.level": level}
        )
    leads = together(ARMS["head"], ARMS["shared"]) if arm == "pair" else ARMS[arm]
    best = Entry(leads, SimpleNamespace(study=optuna.create_study()), params=params or ())
    parts = {"confirm": range(50), "select": range(25)}
    base = SimpleNamespace(splits=SimpleNamespace(part=parts.get))
    seconds = promoting_s(SimpleNamespace(scene=scene, base=base, best=lambda: best))
    assert seconds == pytest.approx(MARGIN_S + SPARE * (anew + 0.5 * confirm))
