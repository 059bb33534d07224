"""Questions with exchanged histories are answered by all that is the other user's, and by nothing else that differs."""

from dataclasses import replace

import numpy as np
import pytest

from objectives.classification import Classification
from personalization.data.exchange import exchange, newest
from personalization.data.splits import split_users
from personalization.stages import chain
from search_spaces import chain_space
from tests.personalization.stages.chains import ACTIVE, params_of
from tests.tiny import SHARES, of_table, short_world

CALM = {"calibration.beta": 0.5}
LORA_OF_ALL, LORA_OF_EACH = ACTIVE["adapter"][0], ACTIVE["adapter"][2]
READ_NO_HISTORY = {
    "lora of all": params_of(("adapter", "calibration"), LORA_OF_ALL, CALM),
    "head of all": params_of(
        ("head", "calibration"), {"head.head": "logistic", "head.blend": 1.0, "head.depth": 0.5}, CALM
    ),
}
READ_HISTORY = {
    "items in the prompt": params_of(("prompt", "calibration"), ACTIVE["prompt"][0], CALM),
    "lora of each": params_of(("adapter", "calibration"), LORA_OF_EACH, CALM),
    "head of each": params_of(("head", "calibration"), {**ACTIVE["head"][0], "head.depth": 0.5}, CALM),
    "steering": params_of(("steering", "calibration"), ACTIVE["steering"][0], CALM),
    "taste": params_of(("calibration",), ACTIVE["calibration"][0]),
}


@pytest.fixture(scope="module")
def splits():
    return split_users(short_world(5, users=12, questions_per_user=2), SHARES)


@pytest.fixture(scope="module")
def objective_of(splits, scorer):
    """A function: chain -> its objective, all on the same stored scores."""
    return lambda params: Classification(chain_space(tuple(params)), splits, scorer)


@pytest.mark.parametrize("name", READ_NO_HISTORY)
def test_what_all_users_share_answers_bit_by_bit_the_same(name, splits, objective_of):
    params = READ_NO_HISTORY[name]
    objective = objective_of(params)
    own = objective.evaluate(params, "confirm")
    other = objective.evaluate_with(params, "confirm", exchange(splits.confirm).dataset, "exchanged")
    assert (own.log_probs == other.log_probs).all()
    assert own.user_ids == other.user_ids
    assert (own.gold == other.gold).all()


@pytest.mark.parametrize("name", of_table(READ_HISTORY, "lora of each", "taste"))
def test_an_exchanged_question_is_that_of_the_other_user(name, splits, objective_of):
    """The other user's own question, with this text in its place."""
    params = READ_HISTORY[name]
    objective = objective_of(params)
    own = objective.evaluate(params, "confirm")
    found = exchange(splits.confirm)
    other = objective.evaluate_with(params, "confirm", found.dataset, "exchanged")
    assert np.abs(own.log_probs - other.log_probs).max() > 1e-3
    histories = {q.user_id: q.history for q in splits.confirm.questions}
    asked = [
        replace(q, user_id=found.givers[q.user_id], history=histories[found.givers[q.user_id]])
        for q in splits.confirm.questions
    ]
    by_hand = objective.evaluate_with(params, "confirm", replace(splits.confirm, questions=tuple(asked)))
    assert np.abs(by_hand.log_probs - other.log_probs).max() < 1e-4


def test_adapters_of_users_go_with_the_history_and_somebody_new_has_none(splits, objective_of):
    params = READ_HISTORY["lora of each"]
    fitted = objective_of(params).fitted(params)
    trained = fitted.learned["adapter"]
    assert chain.user_bytes(fitted) == sum(
        path.stat().st_size for path in (trained.folder / "group-0").iterdir() if path.name.startswith("adapter_")
    )
    found = exchange(splits.confirm)
    expected = [trained.groups[found.givers[q.user_id]] for q in splits.confirm.questions]
    assert trained.assigned(found.dataset, None).tolist() == expected
    assert set(trained.assigned(newest(splits.confirm, 2), None)) == {-1}
