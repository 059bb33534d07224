"""Does the planted world hold what it promises? The last line printed is JSON.

    python benchmarks/demo_world.py [--users 500] [--seed 0] [--model demo]

On the confirm users: the un-tuned model, the best calibration chosen on the tune users, history in the prompt, a
direction added to the residual stream, and the planted oracle. The direction is, for each user, the mean over the
user's own history of (hidden state with the other items in front) minus (without), at the last position; strengths are
in lengths of the residual stream.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from pathlib import Path

import numpy as np

from personalization.backbones.cached import CachedScorer
from personalization.data.demo.world import PlantedWorld, make_world
from personalization.data.records import Dataset
from personalization.data.splits import split_users
from personalization.evaluation import gold_indices
from personalization.methods.taste.priors import (
    global_counts,
    global_prior,
    history_counts,
    log_mean_probability,
    taste,
)
from personalization.methods.taste.solvers import line_optimum
from personalization.metrics import entropy_bits
from personalization.stages import chain
from personalization.stages.work import Tools, begin
from search_spaces.steering import Params

HISTORY_ITEMS = 8
STEERED_USERS = 80
SEARCH_USERS = 40
"""How many tune users calibrate the steered scores, and how many of them choose layers and strength."""
STRENGTHS = (0.5, 1.0, 2.0, 4.0)


def scores_of(scorer: CachedScorer, dataset: Dataset, items: int = 0) -> np.ndarray:
    """Score table with the newest `items` history items in the prompt."""
    prompts = [dataset.task.prompt_of(q.text, q.history[len(q.history) - items :]) for q in dataset.questions]
    return scorer.label_logprobs(prompts, [dataset.task.continuation(own) for own in dataset.labels])


def best_calibration(
    tune_scores: np.ndarray, tune: Dataset, confirm_scores: np.ndarray, confirm: Dataset
) -> tuple[float, float, float, np.ndarray]:
    """(beta, gamma, accuracy on confirm, predictions) of the best feasible calibration on tune."""
    log_model, pi = log_mean_probability(tune_scores), global_prior(global_counts(tune))
    gold, best = gold_indices(tune), None
    for kappa in (2.0, 5.0, 10.0, 20.0):
        log_pi, _ = taste(history_counts(tune), pi, "user", kappa)
        for beta in np.arange(0.0, 2.01, 0.1):
            found = line_optimum(tune_scores - beta * log_model, log_pi, gold, (-1.0, 2.0), 0.6, 0.55)
            if found is not None and (best is None or found.accuracy > best[0]):
                best = (found.accuracy, beta, found.point, kappa)
    if best is None:
        raise SystemExit("no feasible calibration on the tune users")
    _, beta, gamma, kappa = best
    log_pi, _ = taste(history_counts(confirm), pi, "user", kappa)
    predicted = (confirm_scores - beta * log_model + gamma * log_pi).argmax(axis=1)
    return float(beta), gamma, float((predicted == gold_indices(confirm)).mean()), predicted


def group_regressions(world: PlantedWorld) -> dict[str, float]:
    """Accuracy of a logistic regression on the true cues, trained on histories, by group, for all, and by user."""
    from sklearn.linear_model import LogisticRegression

    questions = world.dataset.questions
    cue_names = sorted(set(world.cues.values()))
    column = {cue: i for i, cue in enumerate(cue_names)}
    users = list(world.users)
    first = {q.user_id: q for q in reversed(questions)}
    past = [(u, column[world.cues[h.id]], h.label) for u in users for h in first[u].history]
    asked = [(q.user_id, column[world.cues[q.id]], q.gold) for q in questions]

    def fit_predict(pool_of: dict[str, object]) -> float:
        hits = 0
        for pool in sorted(set(pool_of.values()), key=str):
            train = [(c, y) for u, c, y in past if pool_of[u] == pool]
            test = [(c, y) for u, c, y in asked if pool_of[u] == pool]
            labels = [y for _, y in train]
            if len(set(labels)) == 1:
                hits += sum(y == labels[0] for _, y in test)
                continue
            eye = np.eye(len(cue_names))
            model = LogisticRegression(C=3.0, max_iter=100).fit(eye[[c for c, _ in train]], labels)
            hits += int((model.predict(eye[[c for c, _ in test]]) == np.array([y for _, y in test])).sum())
        return hits / len(asked)

    return {
        "by_group": fit_predict({u: world.users[u].group for u in users}),
        "for_all": fit_predict(dict.fromkeys(users, 0)),
        "by_user": fit_predict({u: u for u in users}),
    }


def spread(predicted: np.ndarray, k: int) -> dict[str, float]:
    counts = np.bincount(predicted, minlength=k)
    return {"entropy": entropy_bits(counts), "top1_share": float(counts.max() / counts.sum())}


def plainest(layer: int, strength: float) -> dict[str, Params]:
    """The plainest edit: the mean difference, added to what leaves one layer from the prompt's end on."""
    return {"steering": Params(shrink=1e-9, alpha_personal=strength, place=str(layer))}


def search_steering(tools: Tools, dataset: Dataset) -> dict[tuple[int, float], float]:
    """(layer, strength) -> accuracy."""
    gold, work, found = gold_indices(dataset), begin(dataset, tools, "few"), {}
    for layer, strength in itertools.product(range(tools.scorer.backbone.depth), STRENGTHS):
        labels = chain.fit(plainest(layer, strength), work, tools).answers.log_probs.argmax(axis=1)
        found[layer, strength] = float((labels == gold).mean())
    return found


def measure(scorer: CachedScorer, world: PlantedWorld) -> dict[str, object]:
    """Every figure that the world promises, on its confirm users."""
    splits = split_users(world.dataset)
    tune, confirm = splits.tune, splits.confirm
    gold, k = gold_indices(confirm), len(confirm.labels)
    plain_tune, plain = scores_of(scorer, tune), scores_of(scorer, confirm)
    untuned = plain.argmax(axis=1)
    beta, gamma, calibrated, calibrated_labels = best_calibration(plain_tune, tune, plain, confirm)
    log_model, pi = log_mean_probability(plain_tune), global_prior(global_counts(tune))
    log_pi, _ = taste(history_counts(confirm), pi, "user", 5.0)
    oracle = dict(zip((q.id for q in world.dataset.questions), world.oracle().argmax(axis=1), strict=True))
    with_history = scores_of(scorer, confirm, HISTORY_ITEMS).argmax(axis=1)

    def accuracy(predicted: np.ndarray) -> float:
        return float((predicted == gold).mean())

    steered_users = sorted({q.user_id for q in tune.questions})[:STEERED_USERS]
    some, few = tune.of_users(steered_users), tune.of_users(steered_users[:SEARCH_USERS])
    tools = Tools(scorer)
    steering = search_steering(tools, few)
    (layer, strength), _ = max(steering.items(), key=lambda entry: entry[1])
    fitted = chain.fit(plainest(layer, strength), begin(some, tools, "some"), tools)
    steered = chain.answer(fitted, begin(confirm, tools, "confirm"), tools).answer.log_probs
    both = best_calibration(fitted.answers.log_probs, some, steered, confirm)
    result: dict[str, object] = {
        "confirm_users": len({q.user_id for q in confirm.questions}),
        "confirm_questions": len(confirm),
        "gold_entropy": entropy_bits(np.bincount(gold, minlength=k)),
        "untuned": {"accuracy": accuracy(untuned), **spread(untuned, k)},
        "calibrated": {"accuracy": calibrated, "beta": beta, "gamma": gamma, **spread(calibrated_labels, k)},
        "taste_subtracted": accuracy((plain - log_model - log_pi).argmax(axis=1)),
        "history_in_prompt": accuracy(with_history),
        "steered": {
            "accuracy": accuracy(steered.argmax(axis=1)),
            "layer": layer,
            "strength": strength,
        },
        "steered_and_calibrated": {"accuracy": both[2], "beta": both[0], "gamma": both[1]},
        "oracle": accuracy(np.array([oracle[q.id] for q in confirm.questions])),
        "steering_on_tune": {f"{layer} x{strength}": a for (layer, strength), a in steering.items()},
    }
    result["regression_on_cues"] = group_regressions(world)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="demo")
    arguments = parser.parse_args()
    world = make_world(arguments.seed, arguments.users)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(CachedScorer(arguments.model, Path(folder)), world)
    for name, value in result.items():
        print(f"{name:24} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
