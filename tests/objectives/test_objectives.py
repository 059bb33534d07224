"""Contract: every objective listed in OBJECTIVES, on planted scores."""

import json
import subprocess
import sys
import zlib
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from threading import RLock

import numpy as np
import optuna
import pytest
import yaml
from objectives.calibration import solved
from objectives.steering import _settings
from personalization.methods.steering.steered_scorer import SteeredScorer

from objectives import OBJECTIVES, load_objective
from personalization.backbones.cached import CachedScorer
from personalization.data.demo.world import TAGS
from personalization.data.lamp import write_dataset
from personalization.data.prompts import WORDINGS
from personalization.data.records import HistoryItem
from personalization.data.splits import split_users
from personalization.deployment import FORMAT, Deployment
from personalization.methods.taste.priors import log_mean_probability
from search_spaces import load_space, parameters
from tests.tiny import SHARES, of_table, short_world
from tracking import figures


def drawn(text, size):
    """Numbers that depend on a text alone."""
    return np.random.default_rng(zlib.crc32(text.encode())).normal(size=size)


CHEAP = of_table(OBJECTIVES, "calibration", "report_calibration", "retrieval")
"""Where trials that train or steer are left to the slow tests."""


class PlantedScorer:
    """Scores that lean to the gold label and strongly to "true story". Counts its calls."""

    lock = RLock()

    fingerprint = "planted"
    kind = "causal"

    def __init__(self, world):
        self.golds = {q.text: q.gold for q in world.questions}
        self.calls = 0

    def embeddings(self, texts, progress=None):
        vectors = np.array([drawn(text, 8) for text in texts], dtype=np.float32).reshape(-1, 8)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def too_long(self, prompts, continuations):
        return []

    def label_logprobs(self, prompts, continuations, progress=None):
        self.calls += 1
        drawn_scores = [drawn(prompt, len(continuations)) for prompt in prompts]
        scores = np.array(drawn_scores, dtype=np.float32).reshape(-1, len(continuations))
        scores[:, TAGS.index("true story")] += 3.0
        for row, prompt in enumerate(prompts):
            gold = self.golds.get(prompt.removesuffix("\nanswer:").rpartition('". ')[2])
            if gold is not None:
                scores[row, TAGS.index(gold)] += 1.0
        return scores


@pytest.fixture(scope="module")
def world():
    return short_world(5, users=36, questions_per_user=2)


@pytest.fixture(params=OBJECTIVES)
def name(request):
    return request.param


def into(seen):
    """A report that collects."""
    return lambda first, step=None: seen.append(first)


LOOK_INSIDE = ("steering", "adapter")


class ModelScorer(CachedScorer):
    """A tiny model, for objectives that look inside. Counts its calls."""

    calls = 0

    def label_logprobs(self, prompts, continuations, progress=None):
        self.calls += 1
        return super().label_logprobs(prompts, continuations, progress)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache") / "scores"


@pytest.fixture
def scorer(name, world, tiny_model, folder):
    return ModelScorer(str(tiny_model), folder) if name in LOOK_INSIDE else PlantedScorer(world)


@pytest.fixture
def objective(name, world, scorer):
    return load_objective(name, split_users(world, SHARES), scorer)


def some_params(name, count=5):
    space = load_space(name)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    if name == "adapter":  # a short training of each level, and a head
        short = {
            "adapter": "lora",
            "blend": 1.0,
            "fit": "searched",
            "epochs": 1,
            "rank": 2,
            "lr": 1e-2,
            "start": 0.5,
            "anchor": 0.0,
        }
        chosen = [{**short, "level": "cluster", "groups": 2}, {**short, "level": "user", "blend": 0.5}]
        chosen.append({**short, "adapter": "prefix", "level": "user", "prefix_tokens": 3})
        head = {"adapter": "head", "blend": 1.0, "c": 0.01, "fit": "exact", "prior_mode": "user"}
        chosen += [{**head, "level": level, "groups": 2, "c_own": 0.1} for level in ("unified", "cluster", "user")]
        return [
            space.decode({**study.ask(parameters(space, "causal")).params, "k": 0, "word_dropout": 0.0, **fixed})
            for fixed in chosen
        ]
    return [space.decode(study.ask(parameters(space, "causal")).params) for _ in range(count)]


def test_baseline_is_the_untuned_model(name, objective):
    evaluation = objective.evaluate(load_space(name).BASELINE)
    if name not in LOOK_INSIDE:
        assert evaluation.metrics["top1_share"] > 0.6
    assert np.allclose(np.exp(evaluation.log_probs).sum(axis=1), 1)


@pytest.mark.parametrize("name", CHEAP)
def test_a_trial_costs_no_scoring_and_repeats_exactly(name, objective, scorer):
    objective.evaluate(load_space(name).BASELINE)
    calls = scorer.calls
    for params in some_params(name):
        params = replace(params, k=0) if name in ("retrieval", "adapter") else params
        first, again = objective.evaluate(params), objective.evaluate(params)
        assert (first.log_probs == again.log_probs).all()
        assert all(np.isfinite(v) for v in first.metrics.values())
    assert scorer.calls == calls


def test_items_in_the_prompt_are_scored_once_for_each_number_and_ranking(name, objective, scorer):
    if name != "retrieval":
        return
    base = replace(load_space(name).BASELINE, k=2, ranking="bm25")
    objective.evaluate(base)
    calls = scorer.calls
    for change in ({"beta": 1.0}, {"tau": 2.0}, {"prior_mode": "user", "gamma": 1.0}):
        objective.evaluate(replace(base, **change))
    assert scorer.calls == calls
    objective.evaluate(replace(base, k=3))
    objective.evaluate(replace(base, ranking="recency"))
    assert scorer.calls == calls + 2


@pytest.mark.parametrize("name", CHEAP)
def test_what_is_observed_are_finite_numbers(name, objective):
    for params in [load_space(name).BASELINE, *some_params(name)]:
        observed = objective.observed(params)
        assert all(isinstance(value, float) and np.isfinite(value) for value in observed.values())
        if name == "steering":
            assert bool(observed) == (params.alpha_personal != 0 or params.alpha_general != 0)
            assert observed.get("steering_steered_share", 0) <= 1


@pytest.mark.parametrize("name", CHEAP)
def test_remarks_say_why_nothing_changes(name, objective):
    space = load_space(name)
    for params in some_params(name):
        assert all(isinstance(remark, str) for remark in objective.remarks(params))
    said = " ".join(objective.remarks(space.BASELINE))
    if name == "calibration":
        assert "every label is the model's own" in said
    if name != "steering":
        return
    assert "nothing is steered: alpha_personal and alpha_general are 0" in said
    weak = replace(space.BASELINE, alpha_personal=1e-4, start=0.9)
    (first,) = objective.remarks(weak)
    assert first.startswith("steering changes no label: at layers 1 its direction is orthogonal")
    assert (objective.evaluate(weak).predicted == objective.evaluate(space.BASELINE).predicted).all()
    shut = replace(weak, gate="product", alpha_general=1e-4)
    assert "the product gate opened for no question" in objective.remarks(shut)[0]
    broken = replace(space.BASELINE, alpha_general=200.0)
    assert "steering breaks the model: one label takes 100%" in objective.remarks(broken)[0]
    before, after = objective.evaluate(space.BASELINE), objective.evaluate(broken)
    assert after.metrics["entropy"] == 0 < before.metrics["entropy"]
    assert after.metrics["nll"] > before.metrics["nll"]


@pytest.mark.draws
@pytest.mark.parametrize("name", CHEAP)
def test_what_is_worth_drawing_can_be_drawn(name, objective):
    drawn = {figure for params in some_params(name) for figure in objective.pictures(params)}
    assert drawn == {"steering": {"edits"}, "adapter": {"training", "groups"}}.get(name, set())
    for params in some_params(name):
        for figure, given in objective.pictures(params).items():
            assert figures.PICTURES[figure](**given).startswith(b"\x89PNG")


def test_parts_are_measured_on_their_own_users(name, objective, world):
    splits = split_users(world, SHARES)
    for part in ("tune", "select", "confirm"):
        evaluation = objective.evaluate(load_space(name).BASELINE, part)
        assert evaluation.question_ids == tuple(q.id for q in splits.part(part).questions)


def test_scoring_confirm_users_changes_nothing_on_tune(name, objective):
    params = some_params(name)[0]
    before = objective.evaluate(params).log_probs
    objective.evaluate(params, "confirm")
    assert (objective.evaluate(params).log_probs == before).all()


def test_a_training_reports_the_items_held_out_twice_an_epoch(name, objective):
    if name != "adapter":
        return
    seen = []
    params = replace(some_params(name)[0], epochs=2, lr=0.011)
    objective.evaluate(params, report=into(seen))
    assert len(seen) == 4
    curves = objective.curves(params)
    assert curves["training/epoch"] == [0.5, 1.0, 1.5, 2.0]
    assert len(curves["training/held_out_loss"]) == 4
    assert len({part.question_ids for part in seen}) == 1
    tune = {q.user_id for q in objective._splits.tune.questions}
    assert all(set(part.user_ids) < tune for part in seen)
    assert not set(seen[0].question_ids) & {q.id for q in objective._splits.tune.questions}
    assert set(objective.groups(params, "confirm")) == {q.user_id for q in objective._splits.confirm.questions}


def test_first_users_are_reported_before_all_are_measured(name, objective):
    if name == "adapter":
        return
    seen = []
    whole = objective.evaluate(some_params(name)[0], report=into(seen))
    assert len(seen) == 4
    users = [set(part.user_ids) for part in seen]
    assert all(before < after for before, after in pairwise([*users, set(whole.user_ids)]))
    for part in seen:
        rows = [i for i, user in enumerate(whole.user_ids) if user in set(part.user_ids)]
        assert sorted(part.question_ids) == sorted(whole.question_ids[i] for i in rows)
        golds = dict(zip(whole.question_ids, whole.gold, strict=True))
        assert [golds[question] for question in part.question_ids] == part.gold.tolist()
        if name != "steering":
            assert part.metrics["accuracy"] == pytest.approx(whole.only(np.array(rows)).metrics["accuracy"])


def test_what_is_reported_does_not_depend_on_what_is_in_memory(name, objective):
    first, again = [], []
    params = some_params(name)[0]
    objective.evaluate(params, report=into(first))
    objective.evaluate(params, report=into(again))
    for fresh, kept in zip(first, again, strict=True):
        assert fresh.question_ids == kept.question_ids
        assert (fresh.log_probs == kept.log_probs).all()


def test_a_trial_that_is_stopped_runs_no_further_block(name, objective, monkeypatch):
    class Stopped(Exception):
        pass

    def stop(*_):
        raise Stopped

    ran = []
    real = SteeredScorer.table
    monkeypatch.setattr(SteeredScorer, "table", lambda *args: ran.append(1) or real(*args))
    params = some_params(name)[0]
    if name == "adapter":
        params = replace(params, lr=0.012)  # one that nobody trained yet
    with pytest.raises(Stopped):
        objective.evaluate(params, report=stop)
    assert len(ran) == (name == "steering")
    objective.evaluate(params)
    assert len(ran) == (6 if name == "steering" else 0)


def test_an_exact_fit_is_the_best_of_its_calibrations(name, objective, world):
    if name not in LOOK_INSIDE:
        return
    exact = [replace(p, fit="exact", prior_mode="user", kappa=5.0, source="batch") for p in some_params(name)[:2]]
    for params in exact:
        solved = objective.resolved(params)
        assert solved.fit == "searched"
        best = objective.evaluate(params)
        assert (objective.evaluate(solved).log_probs == best.log_probs).all()
        for change in ({"beta": solved.beta + 0.1}, {"gamma": solved.gamma - 0.1}, {"tau": 1.1 * solved.tau}):
            assert objective.evaluate(replace(solved, **change)).metrics["nll"] > best.metrics["nll"]


def test_what_is_not_steered_has_the_models_own_scores_and_bias(name, objective, world, scorer):
    if name != "steering":
        return
    base = load_space(name).BASELINE
    params = replace(base, alpha_personal=1.0, start=0.6, gate="cosine", open_share=0.5, beta=1.0)
    steered, plain = objective.evaluate(params), objective.evaluate(replace(base, beta=1.0))
    opened = objective._steered("tune", _settings(params)).steered
    assert 0.4 <= opened.mean() <= 0.6
    assert (steered.log_probs[~opened] == plain.log_probs[~opened]).all()
    assert (steered.log_probs[opened] != plain.log_probs[opened]).any(axis=1).all()
    bare = replace(world, questions=tuple(replace(q, history=()) for q in world.questions[:5]))
    answers = [
        Deployment({**objective.deployment(chosen), "fallback": {}}, scorer).log_probs(bare).log_probs
        for chosen in (params, replace(base, beta=1.0))
    ]
    assert (answers[0] == answers[1]).all()


def test_scores_that_an_edit_destroyed_are_measured_and_cooled(name, objective):
    if name != "steering":
        return
    params = replace(load_space(name).BASELINE, fit="exact", prior_mode="user", kappa=5.0, gamma=1.0, beta=1.0)
    for seed in range(12):
        scores = np.random.default_rng(seed).normal(size=(40, len(TAGS))).astype(np.float32)
        gold, counts = np.arange(40) % len(TAGS), np.ones((40, len(TAGS)), dtype=np.int64)
        tables = replace(objective.tables, log_model={"batch": log_mean_probability(scores)})
        found = solved(params, scores, counts, gold, tables)
        assert found.fit == "searched"
        assert 0 < found.tau < np.inf
    broken = replace(load_space(name).BASELINE, alpha_general=200.0, fit="exact", prior_mode="user", kappa=5.0)
    seen = []
    assert np.isfinite(objective.evaluate(broken, report=into(seen)).metrics["nll"])
    assert len(seen) == 4


@pytest.mark.parametrize("name", CHEAP)
def test_settling_moves_no_label_and_worsens_no_likelihood(name, objective):
    for params in some_params(name):
        before, after = objective.evaluate(params), objective.evaluate(objective.settle(params))
        assert (before.predicted == after.predicted).all()
        assert after.metrics["nll"] <= before.metrics["nll"] + 1e-6


@pytest.mark.parametrize("name", CHEAP)
def test_deployment_answers_as_the_trial_did(name, objective, world, scorer):
    confirm = split_users(world, SHARES).confirm
    for params in some_params(name):
        config = yaml.safe_load(yaml.safe_dump({**objective.deployment(params), "fallback": {}}))
        answers = Deployment(config, scorer).predict(confirm.questions)
        evaluation = objective.evaluate(params, "confirm")
        assert [a.label for a in answers] == [TAGS[i] for i in evaluation.predicted]
        assert [a.prior_mode for a in answers] == list(evaluation.prior_modes)


@pytest.mark.slow
def test_a_fresh_process_answers_as_the_trial_did(world, tiny_model, folder, tmp_path):
    """By the command line, from a config and what it names: steered layers, trained adapters."""
    splits = split_users(world, SHARES)
    questions, _ = write_dataset(tmp_path, "confirm", splits.confirm)
    for name in LOOK_INSIDE:
        scorer = ModelScorer(str(tiny_model), folder)
        objective, params = load_objective(name, splits, scorer), some_params(name)[0]
        model = {"path": scorer.model, "dtype": "float32", "device": "auto", "blocks": None, "chat": False}
        about = {"format": FORMAT, "generation": 1, "provenance": {}, "template": WORDINGS["causal"].template}
        config = {**about, "model": {**model, "fingerprint": scorer.fingerprint}, "fallback": {}}
        path, out = tmp_path / f"{name}.yaml", tmp_path / f"{name}.json"
        path.write_text(yaml.safe_dump({**config, **objective.deployment(params)}))
        command = [sys.executable, "-m", "cli", "predict", "--config", path, "--questions", questions, "--out", out]
        subprocess.run(command, check=True, capture_output=True)
        evaluation = objective.evaluate(params, "confirm")
        answers = {answer["id"]: answer["output"] for answer in json.loads(out.read_text())["golds"]}
        assert answers == dict(zip(evaluation.question_ids, (TAGS[i] for i in evaluation.predicted), strict=True))
        assert (evaluation.predicted != objective.evaluate(load_space(name).BASELINE, "confirm").predicted).any()


def growing(questions):
    """Each user's first question in the middle of the history, later ones at its end, with what was asked before."""
    out, since = [], {}
    for q in questions:
        told = since.setdefault(q.user_id, [])
        history = (*q.history, *told) if told else q.history[: len(q.history) // 2]
        now = datetime(2030 + len(told), 1, 1)
        out.append(replace(q, history=history[::-1], date=now))
        text = q.text.rpartition("description: ")[2]
        told.append(HistoryItem(f"asked {q.id}", text, TAGS[len(told)], now))
    return out


@pytest.mark.parametrize("name", CHEAP)
def test_answers_together_are_those_alone_and_in_any_order(name, objective, world, scorer):
    asked = growing(split_users(world, SHARES).confirm.questions[:4])
    assert len({q.user_id for q in asked}) == 2
    for params in some_params(name):
        served = Deployment({**objective.deployment(params), "fallback": {}}, scorer)

        def answers(questions, served=served):
            return {p.id: list(p.log_probs.values()) for p in served.predict(questions)}

        together = answers(asked)
        apart = {key: value for q in asked for key, value in answers([q]).items()}
        for others in (apart, answers(asked[::-1])):
            assert all(np.allclose(others[key], together[key], atol=1e-4) for key in together)


@pytest.mark.parametrize("name", CHEAP)
def test_nothing_to_answer_is_answered_by_nothing(name, objective, scorer):
    for params in some_params(name):
        assert Deployment({**objective.deployment(params), "fallback": {}}, scorer).predict([]) == []


def test_warm_start_is_inside_the_space(name, objective):
    for raw in objective.warm_start():
        assert set(raw) == set(load_space(name).SPACE)
        load_space(name).decode(raw)
