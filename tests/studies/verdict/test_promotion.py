import json
import shutil
from dataclasses import replace
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
from studies.runner import run_study
from studies.spec import PromotionSpec, parse_spec
from studies.study import open_study
from studies.verdict import promotion as promotion_module
from studies.verdict.deployments import publish, roll_back, roll_back_deployment
from studies.verdict.evidence import Evidence
from studies.verdict.promotion import promote
from studies.verdict.references import GUESSES
from studies.verdict.selection import choose, shortlist
from tests.tiny import SHARES


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


@pytest.fixture(scope="module")
def world_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    dataset = make_world(23, users=120, questions_per_user=3).dataset
    write_dataset(folder, "w", dataset)
    GOLDS.update({q.text: q.gold for q in dataset.questions})
    return folder


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    """Homes of studies that were run before, by what they were made with."""
    return tmp_path_factory.mktemp("homes"), {}


@pytest.fixture
def make_study(tmp_path, world_folder, tiny_model, monkeypatch, homes):
    """A function that opens a study over planted scores in a home of the test's own; each is run once for all tests."""

    def make(scorer=BiasedScorer, **changes):
        monkeypatch.setattr("studies.study.CachedScorer", scorer)
        monkeypatch.setattr("personalization.deployment.CachedScorer", scorer)
        raw = {
            "name": "planted",
            "data": {"path": str(world_folder), "shares": SHARES},
            "model": {"path": str(tiny_model)},
            "constraints": {"entropy": ">= 0.6", "top1_share": "<= 0.55"},
            "trials": 16,
            "tracking": "none",
        }
        spec = parse_spec({**raw, **changes}, "test")
        home = tmp_path / "home"
        if home.exists() or spec.storage is not None:
            run_study(spec, home)
            return open_study(spec, home)
        folder, known = homes
        made = known.setdefault(f"{scorer.skill} {scorer.bias} {changes}", folder / str(len(known)))
        if not made.exists():
            run_study(spec, made)
        shutil.copytree(made, home)
        return open_study(spec, home)

    return make


def test_a_real_gain_is_promoted_and_the_config_serves_what_was_tested(tmp_path, make_study, world_folder):
    opened = make_study()
    out = tmp_path / "deploy.yaml"
    result = promote(opened, out)
    assert result["promoted"], result["reason"]
    assert result["confirm"]["tests"]["accuracy"]["p_value"] < 0.05
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


def looks(opened):
    return Evidence(opened.storage).looks()


def test_promoting_again_looks_at_nothing_and_returns_the_same(tmp_path, make_study):
    opened = make_study()
    out = tmp_path / "deploy.yaml"
    first = promote(opened, out)
    lines = Evidence(opened.storage).lines()
    config = out.read_text()
    again = promote(opened, out)
    assert again == {**first, "recorded": True}
    assert Evidence(opened.storage).lines() == lines
    assert out.read_text() == config
    out.unlink()
    restored = promote(opened, out)
    assert restored["generation"] == 2
    assert yaml.safe_load(out.read_text())["params"] == yaml.safe_load(config)["params"]


def with_terms(opened, **terms):
    opened.spec = opened.spec.model_copy(update={"promotion": PromotionSpec(**terms)})
    return opened


def test_gates_are_those_of_the_present_terms(tmp_path, make_study):
    opened, out = make_study(), tmp_path / "deploy.yaml"
    assert promote(with_terms(opened, min_gain=0.9), out)["reason"].endswith("is below the minimum 0.9")
    assert promote(with_terms(opened, alpha=1e-9), out)["promoted"] is False
    assert not out.exists()
    relaxed = promote(with_terms(opened), out)
    assert (relaxed["promoted"], relaxed["recorded"], relaxed["confirm"]["use"]) == (True, True, 1)
    assert promote(with_terms(opened, min_gain=0.9), tmp_path / "other.yaml")["promoted"] is False
    assert len(looks(opened)) == 1


@pytest.mark.parametrize("moved", ["home", "second home", "cleaned"])
def test_evidence_goes_where_the_studies_go(tmp_path, make_study, moved):
    """A home that was moved, another home on the same storage, and a home of which only the studies are left."""
    storage = f"sqlite:///{tmp_path / 'shared.db'}" if moved == "second home" else None
    opened = make_study(storage=storage)
    first = promote(opened, tmp_path / "deploy.yaml")
    home = tmp_path / "other"
    if moved == "home":
        (tmp_path / "home").rename(home)
    elif moved == "cleaned":
        home.mkdir()
        for path in (tmp_path / "home").glob("studies.db*"):
            path.rename(home / path.name)
    again = promote(open_study(opened.spec, home), tmp_path / "elsewhere.yaml")
    assert (again["recorded"], again["confirm"]["use"], again["trial"]) == (True, 1, first["trial"])
    assert again["promoted"]


def test_a_useless_study_is_refused_and_nothing_is_written(tmp_path, make_study):
    class Fair(BiasedScorer):
        bias = 0.0
        skill = 6.0

    opened = make_study(Fair)
    result = promote(opened, tmp_path / "deploy.yaml")
    assert not result["promoted"]
    assert "better than the baseline" in result["reason"]
    assert result["deploy"] is None
    assert not (tmp_path / "deploy.yaml").exists()


def test_no_feasible_trial_is_refused_before_the_confirm_set_is_opened(tmp_path, make_study):
    opened = make_study(constraints={"entropy": ">= 99"}, trials=3)
    result = promote(opened, tmp_path / "deploy.yaml")
    assert "no feasible trial" in result["reason"]
    assert looks(opened) == []


def test_a_gain_below_the_minimum_is_refused(tmp_path, make_study):
    result = promote(make_study(promotion={"min_gain": 0.9}), tmp_path / "deploy.yaml")
    assert not result["promoted"]
    assert "below the minimum 0.9" in result["reason"]


def test_infeasible_on_confirm_is_refused(tmp_path, make_study, monkeypatch):
    opened = make_study()
    monkeypatch.setattr(promotion_module, "feasible", lambda found, _: found.candidates)
    strict = [type(c)(c.metric, c.sign, 99.0 if c.metric == "entropy" else c.bound) for c in opened.constraints]
    opened.constraints = strict
    result = promote(opened, tmp_path / "deploy.yaml")
    assert "not feasible on the confirm users: entropy" in result["reason"]


def test_the_deployed_config_must_be_beaten_too(tmp_path, make_study):
    opened = make_study()
    out = tmp_path / "deploy.yaml"
    assert promote(opened, out)["promoted"]
    more = make_study(trials=17)
    result = promote(more, out)
    assert not result["promoted"]
    assert "not better than the deployed config's" in result["reason"]
    assert result["confirm"]["use"] == 2
    assert yaml.safe_load(out.read_text())["generation"] == 1


def test_a_look_that_was_opened_and_lost_counts_and_is_finished(tmp_path, make_study, monkeypatch):
    opened = make_study()

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(promotion_module, "significance", crash)
        with pytest.raises(KeyboardInterrupt):
            promote(opened, tmp_path / "deploy.yaml")
    assert [look.found for look in looks(opened)] == [None]
    result = promote(opened, tmp_path / "deploy.yaml")
    assert (result["confirm"]["use"], result["recorded"]) == (1, False)
    assert [look.found is None for look in looks(opened)] == [False]


def test_nothing_that_can_fail_stands_between_a_look_and_its_record(tmp_path, make_study, monkeypatch):
    opened = make_study()

    def crash(*_, **__):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(promotion_module, "write_report", crash)
        with pytest.raises(MemoryError):
            promote(opened, tmp_path / "deploy.yaml")
    assert promote(opened, tmp_path / "deploy.yaml")["recorded"]


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


@pytest.mark.slow
def test_another_study_on_the_same_confirm_users_is_a_second_look(tmp_path, make_study):
    promote(make_study(), tmp_path / "deploy.yaml")
    second = promote(make_study(name="again", seed=5), tmp_path / "other.yaml")
    assert second["confirm"]["use"] == 2
    assert second["confirm"]["alpha"] == pytest.approx(0.05 * 6 / (np.pi * 2) ** 2)


def test_the_shortlist_differs_in_labels_and_the_largest_gain_is_chosen(make_study):
    opened = make_study()
    found = shortlist(opened)
    assert 1 < len(found.candidates) <= 5
    labels = {opened.objective.evaluate(c.params).predicted.tobytes() for c in found.candidates}
    assert len(labels) == len(found.candidates)
    assert len(found.baseline.gold) == len(opened.splits.tune) + len(opened.splits.select)
    chosen = choose(found, found.candidates, ["accuracy"], {}, 0.05)
    assert chosen.seen.metrics["accuracy"] == max(c.seen.metrics["accuracy"] for c in found.candidates)


def test_the_baseline_is_a_candidate(make_study):
    found = shortlist(make_study())
    best = max(c.seen.metrics["accuracy"] for c in found.candidates)
    as_good = replace(found, baseline=next(c.seen for c in found.candidates if c.seen.metrics["accuracy"] == best))
    assert choose(as_good, found.candidates, ["accuracy"], {}, 0.05) is None


def test_answers_by_what_learned_from_tune_users_are_judged_on_select_alone(make_study, monkeypatch):
    opened = make_study()
    monkeypatch.setattr(type(opened.objective), "learned_from_tune", lambda *_: True)
    found = shortlist(opened)
    assert found.baseline.user_ids == tuple(q.user_id for q in opened.splits.select.questions)
    worse = replace(found, candidates=[replace(c, seen=found.baseline) for c in found.candidates])
    better = found.candidates[0].seen
    assert choose(replace(worse, baseline=better), worse.candidates, ["accuracy"], {}, 0.05) is None
    assert choose(found, found.candidates, ["accuracy"], {}, 0.05) is not None


@pytest.mark.slow
def test_several_goals_spread_the_shortlist_over_the_front_and_none_is_sold_for_another(tmp_path, make_study):
    opened = make_study(optimize={"accuracy": "maximize", "nll": "minimize"}, trials=60)
    on_front = {t.number for t in opened.study.best_trials}
    found = shortlist(opened)
    listed = [c.trial for c in found.candidates]
    assert set(listed[: len(on_front)]) <= on_front
    by_likelihood = sorted(on_front, key=lambda number: opened.study.trials[number].values[1])
    assert by_likelihood[0] in listed
    dishonest = [replace(c, seen=sharpened(c.seen)) for c in found.candidates]
    assert choose(found, dishonest, ["accuracy", "nll"], {}, 0.05) is None
    assert choose(found, dishonest, ["accuracy", "nll"], {"nll": 1000.0}, 0.05) is not None
    result = promote(opened, tmp_path / "deploy.yaml")
    assert set(result["confirm"]["tests"]) == {"accuracy", "nll"}


def sharpened(evaluation):
    """The same labels, said with far too much confidence."""
    z = 60 * evaluation.log_probs
    return replace(evaluation, log_probs=z - np.logaddexp.reduce(z, axis=1, keepdims=True))


@pytest.mark.slow
def test_a_fixed_tau_stays_and_a_free_one_is_settled(make_study):
    fixed = shortlist(make_study(space={"tau": 2.5}, name="fixed")).candidates
    assert {c.params.tau for c in fixed} == {2.5}
    free = make_study(name="free")
    for candidate in shortlist(free).candidates:
        trial = free.rooms.decode(free.study.trials[candidate.trial].params)
        before, after = free.objective.evaluate(trial), free.objective.evaluate(candidate.params)
        assert after.metrics["nll"] <= before.metrics["nll"] + 1e-9


@pytest.mark.parametrize(("metric", "direction"), [("nll", "minimize"), ("macro_f1", "maximize")])
def test_a_study_is_judged_by_what_it_optimises_in_its_own_units(tmp_path, make_study, metric, direction, monkeypatch):
    monkeypatch.setattr("tracking.significance.RESAMPLES", 999)
    result = promote(make_study(optimize={metric: direction}), tmp_path / "deploy.yaml")
    test = result["confirm"]["tests"][metric]
    sign = 1 if direction == "maximize" else -1
    assert test["delta"] == pytest.approx(sign * (test["after"] - test["before"]), abs=1e-9)
    assert test["after"] == result["confirm"]["metrics"][metric]
    assert f"{metric} better by {test['delta']:+.3f}" in result["reason"]


def test_a_goal_that_says_nothing_about_right_answers_is_refused(tmp_path, make_study):
    opened = make_study(optimize={"changed_rate": "minimize"}, trials=2)
    with pytest.raises(UsageError, match="optimises changed_rate"):
        promote(opened, tmp_path / "deploy.yaml")


def test_users_who_are_too_few_are_not_looked_at(tmp_path, make_study, world_folder):
    opened = make_study(data={"path": str(world_folder), "shares": {"tune": 0.55, "select": 0.41, "confirm": 0.04}})
    result = promote(opened, tmp_path / "deploy.yaml")
    assert "5 confirm users cannot show anything" in result["reason"]
    assert looks(opened) == []


@pytest.mark.slow
def test_confirm_users_that_another_study_tuned_on_are_named(tmp_path, make_study, world_folder):
    shares = {"tune": 0.2, "select": 0.1, "confirm": 0.7}
    make_study(name="earlier", trials=1)
    opened = make_study(name="later", data={"path": str(world_folder), "shares": shares})
    result = promote(opened, tmp_path / "deploy.yaml")
    assert result["confirm"]["chosen_by"] == {"tune": {"earlier": 24}, "select": {"earlier": 24}}


@pytest.mark.slow
def test_a_reference_that_does_better_refuses(tmp_path, make_study, monkeypatch):
    monkeypatch.setitem(GUESSES, "oracle", lambda _, q: q.gold if q.id.endswith("1") else None)
    opened, out = make_study(), tmp_path / "deploy.yaml"
    beside = promote(opened, out)["confirm"]["references"]
    answered = sum(q.id.endswith("1") for q in opened.splits.confirm.questions)
    assert (beside["oracle"]["answered"], beside["oracle"]["n"]) == (answered, len(opened.splits.confirm))
    assert beside["oracle"]["tests"]["accuracy"]["before"] > beside["prior alone"]["tests"]["accuracy"]["before"]
    monkeypatch.setitem(GUESSES, "oracle", lambda _, q: q.gold)
    opened = make_study(name="again")
    result = promote(opened, tmp_path / "other.yaml")
    assert "oracle (no model) does better" in result["reason"]
    assert promote(with_terms(opened, beat_references=False, alpha=0.9), tmp_path / "other.yaml")["promoted"]


@pytest.mark.parametrize("damage", ["format: 99\n", "model: [\n"])
def test_a_config_that_cannot_be_read_is_reported_before_any_look_and_replaced_on_purpose(tmp_path, make_study, damage):
    opened, out = make_study(), tmp_path / "deploy.yaml"
    out.write_text(damage)
    with pytest.raises(DataError, match="--replace-unreadable"):
        promote(opened, out)
    assert looks(opened) == []
    result = promote(opened, out, replace_unreadable=True)
    assert result["promoted"]
    assert "not a deploy config" in yaml.safe_load(out.read_text())["provenance"]["replaced_unreadable"]
    assert (tmp_path / "deploy.yaml.unreadable").read_text() == damage


@pytest.mark.slow
def test_a_relative_constraint_is_checked_on_confirm(tmp_path, make_study):
    opened = make_study(constraints={"accuracy_gain": ">= 0.01", "entropy": ">= 0.6"})
    assert promote(opened, tmp_path / "deploy.yaml")["promoted"]


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
    assert roll_back(home, out) == (4, 2)
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


@pytest.mark.slow
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
