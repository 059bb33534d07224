import json
from threading import RLock, Thread

import numpy as np
import pytest
import yaml

from personalization.backbones.cached import CachedScorer
from personalization.data.demo.world import TAGS, make_world
from personalization.data.lamp import read_dataset, write_dataset
from personalization.data.prompts import TEMPLATE
from personalization.deployment import FORMAT, Deployment
from personalization.errors import DataError, UsageError
from studies import promotion as promotion_module
from studies.deployments import publish, roll_back
from studies.ledger import Ledger, spent_alpha
from studies.promotion import promote, roll_back_deployment
from studies.runner import run_study
from studies.selection import choose, mean_and_error, shortlist
from studies.spec import parse_spec
from studies.study import open_study
from tests.tiny import random_evaluation


class BiasedScorer:
    """A model that leans to the gold label and too much to "true story"; the bias can be switched off."""

    bias = 3.0
    skill = 1.0
    truncated = 0
    kind = "causal"
    commit = None
    lock = RLock()

    def __init__(self, model, folder, dtype="float32", device="auto", blocks=None, chat=False, revision=None):
        self.fingerprint = "planted-model"

    def label_logprobs(self, prompts, continuations, progress=None):
        scores = np.empty((len(prompts), len(continuations)), dtype=np.float32)
        for row, prompt in enumerate(prompts):
            rng = np.random.default_rng(list(prompt.encode()))
            scores[row] = rng.normal(size=len(continuations))
            gold = GOLDS.get(prompt.removesuffix("\nanswer:"))
            if gold is not None:
                scores[row, TAGS.index(gold)] += self.skill
        scores[:, TAGS.index("true story")] += self.bias
        return scores


GOLDS: dict[str, str] = {}


@pytest.fixture
def world_folder(tmp_path):
    dataset = make_world(23, users=120, questions_per_user=3).dataset
    write_dataset(tmp_path / "data", "w", dataset)
    GOLDS.update({q.text: q.gold for q in dataset.questions})
    return tmp_path / "data"


@pytest.fixture
def make_study(tmp_path, world_folder, tiny_model, monkeypatch):
    """A function that runs a study over planted scores and opens it again."""

    def make(scorer=BiasedScorer, **changes):
        monkeypatch.setattr("studies.study.CachedScorer", scorer)
        monkeypatch.setattr("personalization.deployment.CachedScorer", scorer)
        raw = {
            "name": "planted",
            "data": {"path": str(world_folder)},
            "model": {"path": str(tiny_model)},
            "constraints": {"entropy": ">= 0.6", "top1_share": "<= 0.55"},
            "trials": 30,
            "tracking": "none",
        }
        spec = parse_spec({**raw, **changes}, "test")
        run_study(spec, tmp_path / "home")
        return open_study(spec, tmp_path / "home")

    return make


def test_a_real_gain_is_promoted_and_the_config_serves_what_was_tested(tmp_path, make_study, world_folder):
    opened = make_study()
    out = tmp_path / "deploy.yaml"
    result = promote(opened, out)
    assert result["promoted"], result["reason"]
    assert result["confirm"]["p_value"] < 0.05
    assert result["confirm"]["users"] == 36
    assert result["confirm"]["alpha"] == pytest.approx(0.05 * 6 / np.pi**2)
    config = yaml.safe_load(out.read_text())
    assert (config["generation"], config["provenance"]["trial"]) == (1, result["trial"])
    deployment = Deployment.load(out)
    confirm = opened.splits.confirm
    answers = deployment.predict(confirm.questions)
    hits = np.mean([a.label == q.gold for a, q in zip(answers, confirm.questions, strict=True)])
    assert hits == pytest.approx(result["confirm"]["accuracy"])
    assert read_dataset(world_folder).labels == tuple(config["labels"])


def test_promoting_again_returns_the_record_and_spends_nothing(tmp_path, make_study):
    opened = make_study()
    out = tmp_path / "deploy.yaml"
    first = promote(opened, out)
    entries = Ledger(opened.home).entries()
    config = out.read_text()
    again = promote(opened, out)
    assert again == {**first, "recorded": True}
    assert Ledger(opened.home).entries() == entries
    assert out.read_text() == config
    out.unlink()
    restored = promote(opened, out)
    assert restored["generation"] == 2
    assert yaml.safe_load(out.read_text())["params"] == yaml.safe_load(config)["params"]


def test_a_useless_study_is_refused_and_nothing_is_written(tmp_path, make_study):
    class Fair(BiasedScorer):
        bias = 0.0
        skill = 6.0

    opened = make_study(Fair)
    result = promote(opened, tmp_path / "deploy.yaml")
    assert not result["promoted"]
    assert result["deploy"] is None
    assert not (tmp_path / "deploy.yaml").exists()


def test_no_feasible_trial_is_refused_before_the_confirm_set_is_opened(tmp_path, make_study):
    opened = make_study(constraints={"entropy": ">= 99"}, trials=3)
    result = promote(opened, tmp_path / "deploy.yaml")
    assert "no feasible trial" in result["reason"]
    assert Ledger(opened.home).entries() == []


def test_a_gain_below_the_minimum_is_refused(tmp_path, make_study):
    result = promote(make_study(promotion={"min_gain": 0.9}), tmp_path / "deploy.yaml")
    assert not result["promoted"]
    assert "below the minimum 0.9" in result["reason"]


def test_infeasible_on_confirm_is_refused(tmp_path, make_study, monkeypatch):
    opened = make_study()
    monkeypatch.setattr(promotion_module, "feasible_on_select", lambda _, candidates: candidates)
    strict = [type(c)(c.metric, c.sign, 99.0 if c.metric == "entropy" else c.bound) for c in opened.constraints]
    opened.constraints = strict
    result = promote(opened, tmp_path / "deploy.yaml")
    assert "not feasible on the confirm users: entropy" in result["reason"]


def test_the_deployed_config_must_be_beaten_too(tmp_path, make_study):
    opened = make_study()
    out = tmp_path / "deploy.yaml"
    assert promote(opened, out)["promoted"]
    more = make_study(trials=31)
    result = promote(more, out)
    assert not result["promoted"]
    assert "not better than the deployed config's" in result["reason"]
    assert result["confirm"]["use"] == 2
    assert yaml.safe_load(out.read_text())["generation"] == 1


def test_a_use_that_was_opened_and_lost_counts_and_is_finished(tmp_path, make_study, monkeypatch):
    opened = make_study()

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(promotion_module, "judge", crash)
        with pytest.raises(KeyboardInterrupt):
            promote(opened, tmp_path / "deploy.yaml")
    assert [e["event"] for e in Ledger(opened.home).entries()] == ["opened"]
    result = promote(opened, tmp_path / "deploy.yaml")
    assert result["confirm"]["use"] == 1
    assert [e["event"] for e in Ledger(opened.home).entries()] == ["opened", "closed"]


def test_a_promotion_killed_before_the_config_was_written_is_finished(tmp_path, make_study, monkeypatch):
    opened = make_study()
    out = tmp_path / "deploy.yaml"

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(promotion_module, "publish", die)
        with pytest.raises(KeyboardInterrupt):
            promote(opened, out)
    assert not out.exists()
    result = promote(opened, out)
    assert (result["promoted"], result["recorded"], result["generation"]) == (True, True, 1)
    again = promote(opened, out)
    assert (again["deploy"], again["generation"]) == (str(out), 1)


def test_another_study_on_the_same_confirm_users_is_a_second_look(tmp_path, make_study):
    promote(make_study(), tmp_path / "deploy.yaml")
    second = promote(make_study(name="again", seed=5), tmp_path / "other.yaml")
    assert second["confirm"]["use"] == 2
    assert second["confirm"]["alpha"] == pytest.approx(0.05 * 6 / (np.pi * 2) ** 2)


def test_shortlist_differs_in_labels_and_choice_is_simplest_within_one_error(make_study):
    opened = make_study()
    candidates = shortlist(opened)
    assert 1 < len(candidates) <= 5
    labels = {opened.objective.evaluate(c.params).predicted.tobytes() for c in candidates}
    assert len(labels) == len(candidates)
    chosen = choose(candidates, "accuracy")
    best = max(candidates, key=lambda c: c.select.metrics["accuracy"])
    _, error = mean_and_error(best.select, "accuracy")
    assert chosen.select.metrics["accuracy"] >= best.select.metrics["accuracy"] - error
    assert chosen.complexity <= best.complexity


def test_a_fixed_tau_stays_and_a_free_one_is_settled(make_study):
    fixed = shortlist(make_study(space={"tau": 2.5}, name="fixed"))
    assert {c.params.tau for c in fixed} == {2.5}
    free = make_study(name="free")
    for candidate in shortlist(free):
        trial = free.rooms.decode(free.study.trials[candidate.trial].params)
        before, after = free.objective.evaluate(trial), free.objective.evaluate(candidate.params)
        assert after.metrics["nll"] <= before.metrics["nll"] + 1e-9


def test_a_study_of_likelihood_is_judged_by_likelihood(tmp_path, make_study):
    result = promote(make_study(optimize={"nll": "minimize"}), tmp_path / "deploy.yaml")
    assert result["confirm"]["metric"] == "nll"
    assert result["promoted"]
    assert result["confirm"]["delta"] > 0
    assert "nll better by" in result["reason"]


def test_a_significant_loss_is_no_gain(make_study):
    opened = make_study(optimize={"nll": "minimize"})
    good = opened.objective.evaluate(shortlist(opened)[0].params, "confirm")
    bad = opened.objective.evaluate(opened.rooms.BASELINE, "confirm")
    assert promotion_module.judge(opened, bad, good, None, 0.05).promoted
    opened.constraints = []
    verdict = promotion_module.judge(opened, good, bad, None, 0.05)
    assert not verdict.promoted
    assert verdict.confirm["p_value"] < 0.05


def test_a_relative_constraint_is_checked_on_confirm(tmp_path, make_study):
    opened = make_study(constraints={"accuracy_gain": ">= 0.01", "entropy": ">= 0.6"})
    assert promote(opened, tmp_path / "deploy.yaml")["promoted"]


def test_clustered_error_is_larger_when_users_agree_with_themselves():
    evaluation = random_evaluation(0, n=200, users=10)
    _, spread = mean_and_error(evaluation, "accuracy")
    own = np.array([int(u[1:]) % 2 for u in evaluation.user_ids])
    evaluation.log_probs[:] = np.log(0.01)
    evaluation.log_probs[np.arange(200), np.where(own, evaluation.gold, (evaluation.gold + 1) % 5)] = np.log(0.9)
    clone = type(evaluation)(
        evaluation.labels,
        evaluation.question_ids,
        evaluation.user_ids,
        evaluation.gold,
        evaluation.log_probs,
        ["x"] * 200,
    )
    assert mean_and_error(clone, "accuracy")[1] > 2 * spread


def test_alpha_adds_up_to_its_total():
    assert sum(spent_alpha(0.05, use) for use in range(1, 200_000)) == pytest.approx(0.05, rel=1e-4)


def test_damaged_ledger_is_refused(tmp_path):
    (tmp_path / "ledger.jsonl").write_text('{"event": "opened"}\n{"ev')
    with pytest.raises(DataError, match="record 2"):
        Ledger(tmp_path).entries()


def minimal_config(beta: float):
    return {
        "format": FORMAT,
        "model": {},
        "template": TEMPLATE,
        "task": "LaMP_2",
        "labels": [],
        "method": "calibration",
        "params": {"beta": beta},
        "fallback": {},
        "priors": {},
        "provenance": {"study": "s", "study_id": "id"},
    }


def test_rollback_brings_back_what_was_replaced(tmp_path):
    home, out = tmp_path / "home", tmp_path / "deploy.yaml"
    assert [publish(home, out, minimal_config(b)) for b in (0.1, 0.2, 0.3)] == [1, 2, 3]
    assert roll_back(home, out) == (4, 2, 2)
    assert yaml.safe_load(out.read_text())["params"]["beta"] == 0.2
    assert roll_back_deployment(home, out) == (5, 1)
    with pytest.raises(UsageError, match="replaced nothing"):
        roll_back(home, out)


def test_config_of_a_changed_model_is_refused(tmp_path, make_study):
    opened = make_study()
    out = tmp_path / "deploy.yaml"
    promote(opened, out)
    config = yaml.safe_load(out.read_text())
    config["model"]["fingerprint"] = "0" * 64
    out.write_text(yaml.safe_dump(config))
    with pytest.raises(DataError, match="has changed since the promotion"):
        Deployment.load(out)


def test_requests_of_threads_wait_for_each_other(tmp_path, monkeypatch):
    deployment = Deployment(minimal_config(0.0), BiasedScorer("", tmp_path))
    monkeypatch.setattr(Deployment, "log_probs", lambda *_: (np.zeros((0, 0)), []))
    found = []
    other = Thread(target=lambda: found.append(deployment.predict([])))
    with deployment.scorer.lock:
        other.start()
        other.join(0.3)
        assert not found
    other.join()
    assert found == [[]]


def test_a_hub_model_is_promoted_and_served_at_the_commit_of_its_study(tmp_path, make_study, hub):
    class Hub(BiasedScorer):
        def __init__(self, model, folder, *rest):
            super().__init__(model, folder, *rest)
            self.commit = CachedScorer(model, folder, *rest).commit

    opened = make_study(Hub, model={"path": "owner/name"})
    hub.push(2)
    out = tmp_path / "deploy.yaml"
    promote(open_study(opened.spec, opened.home), out)
    model = yaml.safe_load(out.read_text())["model"]
    assert (model["path"], model["revision"]) == ("owner/name", hub.commit(1))
    assert Deployment.load(out).scorer.commit == hub.commit(1)


@pytest.mark.parametrize(
    "text", ["", "a: [", "generation: 1\n", "!!python/object/apply:os.system [ls]\n", json.dumps({"format": 9})]
)
def test_damaged_config_is_one_line(tmp_path, text):
    path = tmp_path / "deploy.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match="not a deploy config") as caught:
        Deployment.load(path)
    assert "\n" not in str(caught.value)


def test_users_without_history_get_the_fall_back(tmp_path, make_study):
    opened = make_study()
    out = tmp_path / "deploy.yaml"
    promote(opened, out)
    deployment = Deployment.load(out)
    question = opened.splits.confirm.questions[0]
    stranger = type(question)(question.id, "new", question.text, (), None)
    modes = [p.prior_mode for p in deployment.predict([question, stranger])]
    assert deployment.config["params"]["prior_mode"] == "user"
    assert modes == ["user", "global"]
