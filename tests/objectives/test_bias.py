"""The model's bias on prompts with nothing to classify."""

from dataclasses import replace

import numpy as np
import pytest

from objectives.classification import Classification
from personalization.data.splits import PARTS, Splits
from personalization.methods.taste.priors import log_mean_probability, log_softmax
from search_spaces import chain_space
from tests.personalization.stages.chains import params_of, singles
from tests.planted import BiasedScorer


class Conversing(BiasedScorer):
    """A chat model."""

    chat, end_of_turn = True, "<end>"

    def conversation(self, system, user):
        return f"{system}<user>{user}<model>"


BLANK = {"neutral": [""], "content_free": [" N/A", " [MASK]", ""]}
"""What stands in the place of what is to be classified."""


@pytest.mark.parametrize("source", BLANK)
@pytest.mark.parametrize("model", [BiasedScorer, Conversing])
def test_prompts_with_nothing_to_classify_are_worded_and_told_as_questions_are(model, source, splits):
    wording = {"prompt": "Briefly: {{input}} ->", "chat": {"user": "In a word: {{input}}"}}
    task = splits.tune.task.model_copy(update={"wordings": {"short": wording}})
    worded = Splits(*(replace(splits.part(part), task=task) for part in PARTS))
    scorer = model("planted", None)
    objective = Classification(chain_space(("prompt", "calibration")), worded, scorer)
    params = objective.space.BASELINE.changed(prompt__wording="short", beta=1.0, source=source)
    objective.evaluate(params.changed(prompt__wording="own"))
    answered, work = objective.evaluate(params).log_probs, objective._fit(params).tune[-1]
    item = f" {task.item(splits.tune.questions[0].text)}"
    assert item in work.prompts[0]
    blank = scorer.label_logprobs([work.prompts[0].replace(item, text) for text in BLANK[source]], work.spoken)
    scores = scorer.label_logprobs(work.prompts, work.spoken)
    assert np.abs(answered - log_softmax(scores - log_mean_probability(blank))).max() <= 1e-5


def test_one_odd_prompt_does_not_say_how_nothing_is_asked(splits):
    tune = splits.tune
    odd = replace(tune, questions=(replace(tune.questions[0], text="x a film"), *tune.questions[1:]))
    found = []
    for part in (tune, odd):
        objective = Classification(
            chain_space(("calibration",)), replace(splits, tune=part), BiasedScorer("planted", None)
        )
        found.append(objective._fit(objective.space.BASELINE).learned["calibration"].plain.bias)
    assert (found[0]["batch"] != found[1]["batch"]).any()
    assert all((found[0][source] == found[1][source]).all() for source in BLANK)


@pytest.mark.parametrize(
    "params",
    [
        params_of(("prompt", "calibration"), {"prompt.k": 2, "prompt.ranking": "bm25"}),
        *(next(params for params in singles() if name in params) for name in ("steering", "head")),
        next(params for params in singles() if "adapter" in params and params["adapter"].level == "cluster"),
    ],
    ids="+".join,
)
def test_where_questions_are_not_asked_of_the_bare_model_its_bias_on_nothing_is_not_theirs(params, splits, scorer):
    objective = Classification(chain_space(tuple(params)), splits, scorer)
    batch, *others = (
        objective.evaluate(params.changed(beta=1.0, source=source)).log_probs for source in ("batch", *BLANK)
    )
    assert all((other == batch).all() for other in others)
