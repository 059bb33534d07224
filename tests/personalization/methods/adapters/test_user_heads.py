"""From histories to logistic heads to scores."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from personalization.backbones.cached import CachedScorer
from personalization.data.records import Dataset
from personalization.errors import DataError
from personalization.methods.adapters.heads import Head, fit_head, fit_near
from personalization.methods.adapters.user_heads import HeadPlan, Heads, UserHeads
from personalization.methods.history.asking import Asking
from personalization.stages import chain
from personalization.stages.chain import Fitted
from personalization.stages.work import Tools, begin
from search_spaces import chain_space

LEVELS = ("unified", "cluster", "user")
PLAN = HeadPlan(groups=2, c=0.1, c_own=1.0, depth=0.9)


@pytest.fixture(scope="module")
def scorers(tiny_model, tiny_encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores")
    found = {"causal": tiny_model, "encoder": tiny_encoder}
    return {kind: CachedScorer(str(model), folder / kind) for kind, model in found.items()}


@pytest.fixture(scope="module")
def encoder(scorers):
    return scorers["encoder"]


def heads_of(scorer, dataset, asked=None):
    """Heads of a data set's questions; `asked` notes what is represented."""

    def represent(prompts, owners):
        if asked is not None:
            asked.append(list(prompts))
        return scorer.embeddings(prompts) if scorer.kind == "encoder" else scorer.last_states(prompts, (1,))[:, 0]

    prompts, _ = Asking().prompts(scorer, dataset)
    return UserHeads(dataset, Asking(), scorer, represent, prompts, np.zeros((len(dataset), 0), dtype=np.bool_))


def params_of(plan):
    return SimpleNamespace(head="logistic", blend=1.0, **vars(plan))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["causal", "encoder"])
def test_heads_are_saved_and_answer_the_same(kind, level, scorers, world, tmp_path):
    heads, plan = heads_of(scorers[kind], world), replace(PLAN, level=level)
    learned = heads.learn(plan)
    again = Heads.load(plan, json.loads(json.dumps(learned.save(tmp_path))), tmp_path)
    scores = heads.scores(learned)
    assert np.allclose(np.exp(scores).sum(axis=1), 1, atol=1e-4)
    assert (heads.scores(again) == scores).all()
    assert len(again.own) == (2 if level == "cluster" else 0)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["causal", "encoder"])
def test_the_stage_answers_by_the_heads_of_its_plan(kind, level, scorers, world):
    """Tune users by those that did not learn from them."""
    plan, tools = replace(PLAN, level=level), Tools(scorers[kind])
    given = {"head": "logistic", "blend": 1.0, **vars(plan)}
    params = chain_space(("head",)).of_full({f"head.{name}": value for name, value in given.items()})
    fitted = chain.fit(params, begin(world, tools, "tune"), tools)
    heads = heads_of(scorers[kind], world)
    expected = heads.learn(plan)
    answered = chain.answer(fitted, begin(world, tools), tools).answer.log_probs
    assert np.abs(answered - heads.scores(expected)).max() <= 1e-4
    assert np.abs(fitted.answers.log_probs - heads.crossed(plan)).max() <= 1e-4
    groups = chain.stage("head").groups(params["head"], fitted.learned["head"], fitted.tune[0], tools)
    assert groups == (
        {q.user_id: g for q, g in zip(world.questions, heads.assigned(expected), strict=True)}
        if level == "cluster"
        else {}
    )


def test_a_head_that_is_not_there_is_named(encoder, world, tmp_path):
    learned = heads_of(encoder, world).learn(PLAN)
    listed = chain.save(Fitted({"head": params_of(PLAN)}, {"head": learned}), tmp_path)
    (tmp_path / "head.safetensors").unlink()
    with pytest.raises(DataError, match="stage head cannot be read: .*; copy the whole folder"):
        chain.load(listed, tmp_path)


def relabelled(dataset, user):
    def changed(q):
        items = tuple(replace(item, label=dataset.labels[0]) for item in q.history)
        return replace(q, history=items) if q.user_id == user else q

    return Dataset(dataset.task, dataset.labels, tuple(map(changed, dataset.questions)))


def test_a_crossed_head_has_not_learned_from_the_users_it_answers(encoder, world):
    user = world.questions[0].user_id
    own = np.array([q.user_id == user for q in world.questions])
    before, after = (heads_of(encoder, d).crossed(PLAN) for d in (world, relabelled(world, user)))
    assert before.shape == (len(world), 15)
    assert (before[own] == after[own]).all()
    assert (before[~own] != after[~own]).any()


def test_a_users_own_head_learns_from_that_user_alone(encoder, world):
    learned = heads_of(encoder, world).learn(replace(PLAN, level="user"))
    user = world.questions[0].user_id
    own = np.array([q.user_id == user for q in world.questions])
    before, after = (heads_of(encoder, d).scores(learned) for d in (world, relabelled(world, user)))
    assert (after[own, 0] > before[own, 0]).all()
    assert (before[~own] == after[~own]).all()
    base = heads_of(encoder, world).scores(replace(learned, plan=PLAN))
    bare = Dataset(world.task, world.labels, tuple(replace(q, history=()) for q in world.questions))
    assert (heads_of(encoder, bare).scores(learned) == base).all()
    assert np.abs(before - base).max() > 0.01


@pytest.mark.parametrize("level", LEVELS)
def test_some_questions_have_the_scores_that_they_have_among_all(encoder, world, level):
    heads, rows = heads_of(encoder, world), np.array([5, 0, 17])
    learned = heads.learn(replace(PLAN, level=level))
    assert np.abs(heads.scores(learned, rows) - heads.scores(learned)[rows]).max() <= 1e-5


def test_a_head_knows_what_is_known_when_the_question_is_asked(encoder, world):
    first, second = world.questions[:2]
    assert first.user_id == second.user_id
    early = replace(first, history=first.history[:3])
    future = tuple(replace(item, label=world.labels[0]) for item in second.history)
    late = replace(second, history=(*first.history[:3], *future[3:]))
    for level in ("user", "cluster"):
        learned = heads_of(encoder, world).learn(replace(PLAN, level=level))
        one, two = (heads_of(encoder, Dataset(world.task, world.labels, some)) for some in ((early,), (late, early)))
        alone, together = one.scores(learned)[0], two.scores(learned)
        assert np.abs(together[1] - alone).max() <= 1e-5
        assert np.abs(together[0] - together[1]).max() > 0.01
        assert two.assigned(learned)[1] == one.assigned(learned)[0]


def test_one_odd_prompt_does_not_say_how_labels_are_asked(scorers, world):
    asked = []
    odd = replace(world.questions[0], text="x a film")
    heads_of(scorers["causal"], Dataset(world.task, world.labels, (odd, *world.questions[1:])), asked).learn(PLAN)
    frame = world.questions[1].text.partition("description:")[0]
    assert len(asked) == 2
    assert all(prompt.startswith(frame) for prompts in asked for prompt in prompts)


def test_a_near_head_is_scikit_learns_around_zero_and_stays_with_its_base():
    random = np.random.default_rng(0)
    x, labels = random.normal(size=(60, 5)), random.integers(0, 3, 60)
    zero = Head(*(np.zeros(s, dtype=np.float32) for s in ((3, 6), 3)), np.zeros(6), np.ones(6))
    with_one = np.column_stack([x, np.ones(60)])  # scikit-learn's penalty leaves an intercept alone
    near = fit_near(zero, with_one, labels, 0.5)
    from sklearn.linear_model import LogisticRegression

    doubled = np.column_stack([with_one, np.ones(60)])
    peer = LogisticRegression(C=0.5, fit_intercept=False, tol=1e-8, max_iter=5000).fit(doubled, labels)
    expected = peer.predict_log_proba(doubled)
    assert np.abs(near.log_probs(with_one) - expected).max() <= 1e-3
    base = fit_head(x, labels, random.normal(size=(3, 5)), 1.0)
    other = random.integers(0, 3, 60)
    distances = [np.abs(fit_near(base, x, other, c).weights - base.weights).max() for c in (1e-6, 1e-2, 10.0)]
    assert distances[0] < 1e-3 < distances[1] < distances[2]
    assert fit_near(base, x[:0], labels[:0], 1.0) is base
