"""What is said of a model and of confirm users before trials are run."""

from dataclasses import replace

import numpy as np
import pytest

from personalization.methods.taste.priors import log_softmax
from studies.runner import run_study
from studies.verdict.prospects import prospect, said
from tests.planted import BiasedScorer
from tracking.detection import detectable_difference


def test_questions_that_are_alike_within_users_are_worth_their_users(make_study):
    opened = make_study(trials=1)
    baseline = opened.baseline
    right = baseline.users[1] % 2 == 0
    table = np.zeros_like(baseline.log_probs)
    table[np.arange(len(right)), (baseline.gold + ~right) % table.shape[1]] = 9.0
    opened.baseline = replace(baseline, log_probs=log_softmax(table))
    found = prospect(opened)
    assert (found.questions, found.users, found.hopeless) == (108, 36, False)
    assert found.questions_worth == pytest.approx(36)
    assert (found.detectable, detectable_difference(108, alpha=found.level) is None) == (None, False)
    assert "108 confirm questions of 36 users detect no gain in accuracy" in said(found)[-1]


@pytest.mark.parametrize(
    ("mass", "line"),
    [(0.5, "the model gives 50.00% of its probability"), (0.004, "mind: the model gives 0.40% of its probability")],
)
def test_a_run_says_how_much_a_model_gives_to_the_labels(mass, line, tmp_path, spec_of, no_results, monkeypatch):
    told = []

    class Wandering(BiasedScorer):
        def label_logprobs(self, prompts, continuations, progress=None):
            scores = super().label_logprobs(prompts, continuations, progress)
            return (log_softmax(scores) + np.log(mass)).astype(np.float32)

    class Watching:
        def __getattr__(self, name):
            return lambda *given: told.append(given) if name == "opened" else None

    monkeypatch.setattr("studies.study.CachedScorer", Wandering)
    result = run_study(spec_of(trials=1), tmp_path, Watching())
    [(found, _)] = told
    assert (result.label_mass, found.label_mass) == pytest.approx((mass, mass), rel=1e-4)
    assert said(found)[0].startswith(line)
