"""Contract: chains of every stage in STAGES, as trials see them, on a tiny model."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from objectives.classification import Classification
from personalization.backbones.cached import CachedScorer
from personalization.data.lamp import write_dataset
from personalization.data.records import Dataset
from personalization.data.splits import Splits
from personalization.deployment import Deployment, served
from personalization.scoring.fixed import FixedRows
from personalization.stages import calibration as calibration_stage
from search_spaces import chain_space
from tests.deployed import write_deployed
from tests.personalization.stages.chains import params_of, singles
from tracking import figures


class CountingScorer(CachedScorer):
    """Counts its calls, and the prompts of each."""

    calls = 0
    sizes: list[int]

    def label_logprobs(self, prompts, continuations, progress=None):
        self.calls += 1
        self.sizes = [*getattr(self, "sizes", []), len(prompts)]
        return super().label_logprobs(prompts, continuations, progress)


@pytest.fixture(scope="module")
def scorer(tiny_model, tmp_path_factory):
    return CountingScorer(str(tiny_model), tmp_path_factory.mktemp("cache") / "scores")


@pytest.fixture(scope="module")
def classified(splits, scorer):
    """chain -> its objective, made once."""
    made = {}

    def of(params):
        if params not in made:
            same = next((found for known, found in made.items() if tuple(known) == tuple(params)), None)
            made[params] = same or Classification(chain_space(tuple(params)), splits, scorer)
        return made[params]

    return of


def named(params):
    return "+".join(params)


def into(seen):
    """A report that collects."""
    return lambda first, step=None: seen.append(first)


ALL = singles()
FIRST = {tuple(params): params for params in reversed(ALL)}
GATE = [params if FIRST[tuple(params)] is params else pytest.param(params, marks=pytest.mark.slow) for params in ALL]
"""Further settings of a chain are left to the slow tests."""
UNTRAINED = [entry for params, entry in zip(ALL, GATE, strict=True) if not {"adapter", "route"} & set(params)]
every = pytest.mark.parametrize("params", GATE, ids=named)
STEERED = next(params for params in ALL if "steering" in params)
TRAINED = next(params for params in ALL if "adapter" in params and params["adapter"].level == "cluster")


@every
def test_a_trial_repeats_exactly_without_a_scoring_pass(params, classified, scorer):
    objective = classified(params)
    baseline = objective.evaluate(objective.space.BASELINE)
    assert np.allclose(np.exp(baseline.log_probs).sum(axis=1), 1)
    first = objective.evaluate(params)
    calls = scorer.calls
    again = objective.evaluate(params)
    objective.evaluate(params.changed(**{"tau" if "calibration" in params else "route__penalty": 2.0}))
    assert (first.log_probs == again.log_probs).all()
    assert all(np.isfinite(v) for v in first.metrics.values())
    assert scorer.calls == calls


def test_items_in_the_prompt_are_scored_once_for_each_number_and_ranking(classified, scorer):
    params = params_of(("prompt", "calibration"), {"prompt.k": 2, "prompt.ranking": "bm25"})
    objective = classified(params)
    objective.evaluate(params)
    calls = scorer.calls
    for change in ({"beta": 1.0}, {"tau": 2.0}, {"prior_mode": "user", "gamma": 1.0}):
        objective.evaluate(params.changed(**change))
    assert scorer.calls == calls
    objective.evaluate(params.with_stage("prompt", replace(params["prompt"], k=1)))
    objective.evaluate(params.with_stage("prompt", replace(params["prompt"], ranking="recency")))
    assert scorer.calls == calls + 2


@every
def test_facts_are_finite_numbers_and_sentences(params, classified):
    objective = classified(params)
    for chosen in (objective.space.BASELINE, params):
        facts = objective.facts(chosen)
        assert all(isinstance(value, float) and np.isfinite(value) for value in facts.metrics.values())
        assert all(isinstance(remark, str) for remark in facts.remarks)
    assert not objective.facts(objective.space.BASELINE).metrics
    if "steering" in params:
        assert 0 < facts.metrics["steering_steered_share"] <= 1
    if "prompt" in params:
        assert facts.remarks[0].startswith(f"with {params['prompt'].k} history items in the prompt accuracy is")


def test_remarks_say_why_nothing_changes(classified):
    plain = classified(params_of(("calibration",)))
    assert plain.facts(plain.space.BASELINE).remarks == ("beta and gamma are 0: every label is the model's own",)
    objective = classified(STEERED)
    base = objective.space.BASELINE

    def steered(**changes):
        return base.with_stage("steering", replace(base["steering"], **changes))

    assert "nothing is steered: alpha_personal and alpha_general are 0" in objective.facts(base).remarks
    weak = steered(alpha_personal=1e-4, start=0.9)
    said = objective.facts(weak).remarks[0]
    assert said.startswith("steering changes no label: at layers 1 its direction is orthogonal")
    assert (objective.evaluate(weak).predicted == objective.evaluate(base).predicted).all()
    shut = steered(alpha_personal=1e-4, start=0.9, gate="product", alpha_general=1e-4)
    assert "the product gate opened for no question" in objective.facts(shut).remarks[0]
    broken = steered(alpha_general=200.0)
    assert "steering breaks the model: one label takes 100%" in objective.facts(broken).remarks[0]
    before, after = objective.evaluate(base), objective.evaluate(broken)
    assert after.metrics["entropy"] == 0 < before.metrics["entropy"]
    assert after.metrics["nll"] > before.metrics["nll"]


@pytest.mark.draws
@every
def test_what_is_worth_drawing_can_be_drawn(params, classified):
    facts = classified(params).facts(params)
    expected = {"steering": {"edits"}, "adapter": {"training"}}
    wanted = {figure for stage in params for figure in expected.get(stage, set())}
    assert set(facts.pictures) >= wanted
    for figure, given in facts.pictures.items():
        assert figures.PICTURES[figure](**given()).startswith(b"\x89PNG")


@every
def test_parts_are_measured_on_their_own_users_and_leave_tune_alone(params, classified, splits):
    objective = classified(params)
    before = objective.evaluate(params).log_probs
    for part in ("select", "confirm"):
        evaluation = objective.evaluate(params, part)
        assert evaluation.question_ids == tuple(q.id for q in splits.part(part).questions)
    assert (objective.evaluate(params).log_probs == before).all()


@every
def test_what_is_served_learns_from_the_select_users_too_when_asked_to(params, classified, splits, scorer):
    objective = classified(params)
    tune = objective.evaluate(params).log_probs
    apart, select = (objective.evaluate(params, part).log_probs for part in ("confirm", "select"))
    calls, refit = scorer.calls, objective.refitting(True)
    both = Dataset(splits.tune.task, splits.tune.labels, (*splits.tune.questions, *splits.select.questions))
    found = refit.evaluate(params, "confirm").log_probs
    if tuple(params) in (("calibration",), ("prompt", "calibration")):
        learns = params["calibration"].formula == "adjusted"  # the reports' formula reads the user's own history alone
        assert (np.abs(found - apart).max() > 1e-4) == learns
        assert len(both) not in scorer.sizes[calls:]  # they are asked in the parts in which they have been
    learned = Splits(both, Dataset(both.task, both.labels, ()), splits.confirm)
    alone = Classification(objective.space, learned, scorer)
    assert np.abs(found - alone.evaluate(params, "confirm").log_probs).max() <= 1e-5
    assert (objective.evaluate(params).log_probs == tune).all()
    assert (objective.evaluate(params, "select").log_probs == select).all()
    assert (objective.evaluate(params, "confirm").log_probs == apart).all()
    assert objective.refitting(False) is objective


def test_a_training_reports_the_items_held_out_twice_an_epoch(classified, splits):
    objective, seen, again = classified(TRAINED), [], []
    params = TRAINED.with_stage("adapter", replace(TRAINED["adapter"], epochs=2, lr=0.011))
    objective.evaluate(params, report=into(seen))
    assert len(seen) == 4
    for curves in (objective.course(params).curves, objective.facts(params).curves):
        assert curves["training/epoch"] == [0.5, 1.0, 1.5, 2.0]
        assert len(curves["training/held_out_loss"]) == 4
    assert len({part.question_ids for part in seen}) == 1
    tune = {q.user_id for q in splits.tune.questions}
    assert all(set(part.user_ids) < tune for part in seen)
    assert not set(seen[0].question_ids) & {q.id for q in splits.tune.questions}
    assert set(objective.groups(params, "confirm")) == {q.user_id for q in splits.confirm.questions}
    objective.evaluate(params.changed(tau=2.0), report=into(again))
    assert [(part.log_probs == other.log_probs).all() for part, other in zip(again, seen, strict=True)] == [True] * 4


@pytest.mark.parametrize("params", UNTRAINED, ids=named)
def test_first_users_are_reported_before_all_are_measured(params, classified):
    objective, seen, again = classified(params), [], []
    whole = objective.evaluate(params, report=into(seen))
    assert len(seen) == 4
    users = [set(part.user_ids) for part in seen]
    assert all(before < after for before, after in pairwise([*users, set(whole.user_ids)]))
    golds = dict(zip(whole.question_ids, whole.gold, strict=True))
    for part in seen:
        expected = [question for question, user in zip(whole.question_ids, whole.user_ids, strict=True)
                    if user in set(part.user_ids)]  # fmt: skip
        assert sorted(part.question_ids) == sorted(expected)
        assert [golds[question] for question in part.question_ids] == part.gold.tolist()
    objective.evaluate(params, report=into(again))
    for fresh, kept in zip(seen, again, strict=True):
        assert fresh.question_ids == kept.question_ids
        assert (fresh.log_probs == kept.log_probs).all()


def test_a_trial_that_is_stopped_runs_no_further_block(classified, monkeypatch):
    class Stopped(Exception):
        pass

    def stop(*_):
        raise Stopped

    ran = []
    real = FixedRows.pass_of
    monkeypatch.setattr(FixedRows, "pass_of", lambda *args: ran.append(1) or real(*args))
    objective = classified(STEERED)
    params = STEERED.with_stage("steering", replace(STEERED["steering"], alpha_personal=0.77))
    with pytest.raises(Stopped):
        objective.evaluate(params, report=stop)
    assert len(ran) == 1
    objective.evaluate(params)
    assert len(ran) == 5


def test_an_exact_fit_is_the_best_of_its_calibrations(classified):
    objective = classified(STEERED)
    params = STEERED.with_stage("steering", replace(STEERED["steering"], alpha_personal=-0.3))
    params = params.changed(fit="exact", beta=0.0, gamma=0.0, prior_mode="user", kappa=5.0)
    solved = objective.resolved(params)
    assert solved["calibration"].fit == "searched"
    best, own = objective.evaluate(params), solved["calibration"]
    assert own.beta != 0
    assert np.allclose(objective.evaluate(solved).log_probs, best.log_probs)
    for change in ({"beta": own.beta + 0.1}, {"gamma": own.gamma - 0.1}, {"tau": 1.1 * own.tau}):
        assert objective.evaluate(solved.changed(**change)).metrics["nll"] > best.metrics["nll"]


def test_what_is_not_steered_has_the_models_own_scores_and_bias(classified, world, scorer):
    objective = classified(STEERED)
    base = objective.space.BASELINE.changed(beta=1.0)
    own = replace(base["steering"], alpha_personal=1.0, start=0.6, gate="cosine", open_share=0.5)
    params = base.with_stage("steering", own)
    steered, plain = objective.evaluate(params), objective.evaluate(base)
    gate = objective._fit(params).tune[-1].touched
    assert 0.4 <= gate.mean() <= 0.6
    assert (steered.log_probs[~gate] == plain.log_probs[~gate]).all()
    assert (steered.log_probs[gate] != plain.log_probs[gate]).any(axis=1).all()
    bare = replace(world, questions=tuple(replace(q, history=()) for q in world.questions[:5]))
    answers = [opened(objective, chosen, scorer).log_probs(bare).log_probs for chosen in (params, base)]
    assert np.abs(answers[0] - answers[1]).max() <= 1e-5


def test_scores_that_an_edit_destroyed_are_measured_and_cooled(classified):
    objective, seen = classified(STEERED), []
    base = objective.space.BASELINE.changed(fit="exact", prior_mode="user", kappa=5.0)
    broken = base.with_stage("steering", replace(base["steering"], alpha_general=200.0))
    assert np.isfinite(objective.evaluate(broken, report=into(seen)).metrics["nll"])
    assert len(seen) == 4


@pytest.mark.parametrize("seed", range(6))
def test_an_exact_fit_of_scores_that_speak_against_the_labels_only_cools(seed, monkeypatch, classified):
    objective = classified(params_of(("calibration",)))
    work = objective.work("tune")
    scores = np.random.default_rng(seed).normal(size=(len(work), len(work.spoken))).astype(np.float32)
    gold = calibration_stage.gold_indices(work.dataset)
    scores[np.arange(len(work)), gold] -= 3.0
    monkeypatch.setattr(calibration_stage, "scores_of", lambda *_: scores)
    params = objective.space.BASELINE.changed(fit="exact", prior_mode="user", kappa=5.0)["calibration"]
    found = calibration_stage.Calibration().learn(params, work, objective._tools).moved
    assert (found.beta, found.gamma) == (0.0, 0.0)
    assert 1.0 < found.tau < np.inf


@every
def test_settling_moves_no_label_and_worsens_no_likelihood(params, classified):
    objective = classified(params)
    before, after = objective.evaluate(params), objective.evaluate(objective.settled(params))
    assert (before.predicted == after.predicted).all()
    assert after.metrics["nll"] <= before.metrics["nll"] + 1e-6


def written(objective, params, scorer, folder):
    """A deployment folder of a chain."""
    labels = list(objective.splits.tune.labels)
    return write_deployed(folder, objective.fitted(params), scorer, task="LaMP_2", labels=labels)


def opened(objective, params, scorer):
    """The deployment of a chain, without a folder."""
    tune = objective.splits.tune
    return served({"task": tune.task, "labels": tune.labels}, objective.fitted(params), scorer)


@every
def test_a_deployment_answers_as_the_trial_did(params, classified, splits, scorer, tmp_path):
    objective = classified(params)
    answers = Deployment.load(written(objective, params, scorer, tmp_path)).predict(splits.confirm.questions)
    evaluation = objective.evaluate(params, "confirm")
    assert [a.label for a in answers] == [evaluation.labels[i] for i in evaluation.predicted]
    assert [a.prior_mode for a in answers] == list(evaluation.prior_modes)
    assert opened(objective, params, scorer).predict([]) == []


@pytest.mark.slow
@pytest.mark.parametrize("params", [STEERED, TRAINED], ids=named)
def test_the_command_line_answers_as_the_trial_did(params, classified, splits, scorer, tmp_path):
    questions, _ = write_dataset(tmp_path, "confirm", splits.confirm)
    objective, out = classified(params), tmp_path / "answers.json"
    folder = written(objective, params, scorer, tmp_path / "deploy")
    command = [sys.executable, "-m", "cli", "predict", "--config", folder, "--questions", questions, "--out", out]
    subprocess.run(command, check=True, capture_output=True)
    evaluation = objective.evaluate(params, "confirm")
    answers = {answer["id"]: answer["output"] for answer in json.loads(out.read_text())["golds"]}
    gold = (evaluation.labels[i] for i in evaluation.predicted)
    assert answers == dict(zip(evaluation.question_ids, gold, strict=True))
    assert (evaluation.predicted != objective.evaluate(objective.space.BASELINE, "confirm").predicted).any()


@every
def test_warm_start_is_inside_the_space(params, classified):
    objective = classified(params)
    for raw in objective.warm_start():
        assert set(raw) == set(objective.space.names)
        objective.space.decode(raw)
