"""Does the planted world hold what it promises? The last line printed is JSON.

    python benchmarks/demo_world.py [--users 500] [--seed 0] [--model demo]

On the confirm users: the un-tuned model, the best calibration chosen on the tune users, history in the prompt, a
direction added to the residual stream, and the planted oracle. The direction is, for each user, the mean over the
user's own history of (hidden state with the other items in front) minus (without), at the last position.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch

from personalization.backbones.causal import CausalBackbone, load_causal
from personalization.data.demo.world import INSTRUCTION, PlantedWorld, make_world
from personalization.data.prompts import continuations, prompt
from personalization.data.records import Dataset, Question
from personalization.data.splits import split_users
from personalization.evaluation import gold_indices
from personalization.methods.calibration import line_optimum
from personalization.methods.priors import global_counts, global_prior, history_counts, log_mean_probability, taste
from personalization.metrics import entropy_bits
from personalization.scoring.packed import Packed
from personalization.scoring.products import fast_products
from personalization.scoring.rows import lay_out

HISTORY_ITEMS = 8
STEERED_USERS = 80
SEARCH_USERS = 40
"""How many tune users calibrate the steered scores, and how many of them choose layers and strength."""
STRENGTHS = (0.5, 1.0, 2.0, 4.0)


def scores_of(backbone: CausalBackbone, dataset: Dataset, items: int = 0) -> np.ndarray:
    """Score table with the newest `items` history items in the prompt."""
    prompts = [prompt(dataset.task, q, q.history[len(q.history) - items :]) for q in dataset.questions]
    return backbone.label_logprobs(prompts, continuations(dataset.labels))


def last_hidden(backbone: CausalBackbone, prompts: list[str]) -> np.ndarray:
    """Hidden states at the last position after each layer, float32 [n, L, d]."""
    tokenizer = backbone.tokenizer
    out = []
    for start in range(0, len(prompts), 32):
        batch = [tokenizer(text)["input_ids"] for text in prompts[start : start + 32]]
        ids = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.long)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = torch.tensor(tokens)
        with torch.inference_mode():
            states = backbone.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
        ends = [len(tokens) - 1 for tokens in batch]
        out.append(torch.stack([h[range(len(batch)), ends] for h in states[1:]], dim=1).numpy())
    return np.concatenate(out)


def user_directions(backbone: CausalBackbone, dataset: Dataset) -> dict[str, np.ndarray]:
    """user -> float32 [L, d]."""
    directions = {}
    for question in {q.user_id: q for q in dataset.questions}.values():
        recent = question.history[-HISTORY_ITEMS:]
        asked = [Question(h.id, question.user_id, INSTRUCTION + h.text, (), h.label) for h in recent]
        with_history = [prompt(dataset.task, q, [h for h in recent if h.id != q.id]) for q in asked]
        without = [prompt(dataset.task, q) for q in asked]
        both = last_hidden(backbone, with_history + without)
        directions[question.user_id] = (both[: len(asked)] - both[len(asked) :]).mean(axis=0)
    return directions


def steered_scores(
    backbone: CausalBackbone, dataset: Dataset, directions: dict[str, np.ndarray], layers: list[int], strength: float
) -> np.ndarray:
    """Score table with `strength` times the user's direction, shared out over the layers, added after each of them.

    It is added from the prompt's last token on, where the direction was measured.
    """
    heads, tails = backbone.encoder.encode(
        [prompt(dataset.task, q) for q in dataset.questions], continuations(dataset.labels)
    )
    route = Packed(backbone.model, backbone.router.head, heads, tails[0], share=False)
    out = np.empty((len(dataset), len(dataset.labels)), dtype=np.float32)
    units = sorted(route.units, key=lambda unit: unit.width)
    for start in range(0, len(units), 64):
        batch = units[start : start + 64]
        rows = [unit.prompts[0] for unit in batch]
        layout = lay_out(batch, heads, 0, route.trees[0])
        scope = torch.zeros(*layout.ids.shape, 1)
        scope[layout.places[:, :1], layout.places[:, 1:]] = 1
        users = np.stack([directions[dataset.questions[i].user_id] for i in rows])
        handles = []
        try:
            for layer in layers:
                shift = torch.from_numpy(strength / len(layers) * users[:, layer])[:, None] * scope
                block = backbone.model.model.layers[layer]
                handles.append(block.register_forward_hook(lambda _m, _i, output, shift=shift: output + shift))
            with torch.inference_mode(), fast_products("cpu"):
                out[rows] = route.score(batch).numpy()
        finally:
            for handle in handles:
                handle.remove()
    return out


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


def search_steering(
    backbone: CausalBackbone, dataset: Dataset, directions: dict[str, np.ndarray]
) -> dict[tuple[tuple[int, ...], float], float]:
    """(layers, strength) -> accuracy, over single layers and neighbours."""
    depth, gold = backbone.model.config.num_hidden_layers, gold_indices(dataset)
    ranges = [(i,) for i in range(depth)] + [(i, i + 1) for i in range(1, depth - 2)]
    return {
        (layers, strength): float(
            (steered_scores(backbone, dataset, directions, list(layers), strength).argmax(axis=1) == gold).mean()
        )
        for layers in ranges
        for strength in STRENGTHS
    }


def measure(backbone: CausalBackbone, world: PlantedWorld) -> dict[str, object]:
    """Every figure that the world promises, on its confirm users."""
    splits = split_users(world.dataset)
    tune, confirm = splits.tune, splits.confirm
    gold, k = gold_indices(confirm), len(confirm.labels)
    plain_tune, plain = scores_of(backbone, tune), scores_of(backbone, confirm)
    untuned = plain.argmax(axis=1)
    beta, gamma, calibrated, calibrated_labels = best_calibration(plain_tune, tune, plain, confirm)
    log_model, pi = log_mean_probability(plain_tune), global_prior(global_counts(tune))
    log_pi, _ = taste(history_counts(confirm), pi, "user", 5.0)
    oracle = dict(zip((q.id for q in world.dataset.questions), world.oracle().argmax(axis=1), strict=True))
    with_history = scores_of(backbone, confirm, HISTORY_ITEMS).argmax(axis=1)

    def accuracy(predicted: np.ndarray) -> float:
        return float((predicted == gold).mean())

    steered_users = sorted({q.user_id for q in tune.questions})[:STEERED_USERS]
    some, few = tune.of_users(steered_users), tune.of_users(steered_users[:SEARCH_USERS])
    directions = user_directions(backbone, some)
    steering = search_steering(backbone, few, directions)
    (layers, strength), _ = max(steering.items(), key=lambda entry: entry[1])
    steered = steered_scores(backbone, confirm, user_directions(backbone, confirm), list(layers), strength)
    both = best_calibration(steered_scores(backbone, some, directions, list(layers), strength), some, steered, confirm)
    result: dict[str, object] = {
        "confirm_users": len({q.user_id for q in confirm.questions}),
        "confirm_questions": len(confirm),
        "gold_entropy": entropy_bits(np.bincount(gold, minlength=k)),
        "untuned": {"accuracy": accuracy(untuned), **spread(untuned, k)},
        "calibrated": {"accuracy": calibrated, "beta": beta, "gamma": gamma, **spread(calibrated_labels, k)},
        "taste_subtracted": accuracy((plain - log_model - log_pi).argmax(axis=1)),
        "history_in_prompt": accuracy(with_history),
        "steered": {"accuracy": accuracy(steered.argmax(axis=1)), "layers": list(layers), "strength": strength},
        "steered_and_calibrated": {"accuracy": both[2], "beta": both[0], "gamma": both[1]},
        "oracle": accuracy(np.array([oracle[q.id] for q in confirm.questions])),
        "steering_on_tune": {f"{'+'.join(map(str, ls))} x{s}": a for (ls, s), a in steering.items()},
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
    result = measure(load_causal(arguments.model), world)
    for name, value in result.items():
        print(f"{name:24} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
