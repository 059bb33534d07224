"""From histories to logistic heads to scores."""

import json
from dataclasses import replace

import numpy as np
import pytest

from personalization.backbones.cached import CachedScorer
from personalization.data.records import Dataset
from personalization.errors import DataError
from personalization.methods.adapters.heads import Head, fit_head, fit_near
from personalization.methods.adapters.user_heads import HeadPlan, UserHeads, load_heads
from tests.tiny import short_world

LEVELS = ("unified", "cluster", "user")
PLAN = HeadPlan(groups=2, c=0.1, c_own=1.0, depth=0.9)


@pytest.fixture(scope="module")
def world():
    return short_world(7, users=16, questions_per_user=2)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["causal", "encoder"])
def test_heads_are_saved_under_their_content_and_answer_the_same(
    kind, level, tiny_model, tiny_encoder, world, tmp_path
):
    scorer = CachedScorer(str({"causal": tiny_model, "encoder": tiny_encoder}[kind]), tmp_path / "scores")
    heads, plan = UserHeads(scorer, tmp_path), replace(PLAN, level=level)
    learned = heads.learn(world, plan)
    listed = json.loads(json.dumps(heads.save(learned)))
    scores = heads.scores(world, learned)
    assert np.allclose(np.exp(scores).sum(axis=1), 1, atol=1e-4)
    assert (heads.scores(world, load_heads(listed)) == scores).all()
    assert len(load_heads(listed).own) == (2 if level == "cluster" else 0)
    (tmp_path / listed["file"].rpartition("/")[2]).write_bytes(b"x")
    with pytest.raises(DataError, match="the head of this config is missing or changed"):
        load_heads(listed)


def relabelled(dataset, user):
    def changed(q):
        items = tuple(replace(item, label=dataset.labels[0]) for item in q.history)
        return replace(q, history=items) if q.user_id == user else q

    return Dataset(dataset.task, dataset.labels, tuple(map(changed, dataset.questions)))


def test_a_crossed_head_has_not_learned_from_the_users_it_answers(tiny_encoder, world, tmp_path):
    heads = UserHeads(CachedScorer(str(tiny_encoder), tmp_path / "scores"), tmp_path)
    user = world.questions[0].user_id
    own = np.array([q.user_id == user for q in world.questions])
    before, after = (heads.crossed(d, PLAN) for d in (world, relabelled(world, user)))
    assert before.shape == (len(world), 15)
    assert (before[own] == after[own]).all()
    assert (before[~own] != after[~own]).any()


def test_a_users_own_head_learns_from_that_user_alone(tiny_encoder, world, tmp_path):
    heads = UserHeads(CachedScorer(str(tiny_encoder), tmp_path / "scores"), tmp_path)
    learned = heads.learn(world, replace(PLAN, level="user"))
    user = world.questions[0].user_id
    own = np.array([q.user_id == user for q in world.questions])
    before, after = (heads.scores(d, learned) for d in (world, relabelled(world, user)))
    assert (after[own, 0] > before[own, 0]).all()
    assert (before[~own] == after[~own]).all()
    base = heads.scores(world, replace(learned, plan=PLAN))
    bare = Dataset(world.task, world.labels, tuple(replace(q, history=()) for q in world.questions))
    assert (heads.scores(bare, learned) == base).all()
    assert np.abs(before - base).max() > 0.01


def test_a_head_knows_what_is_known_when_the_question_is_asked(tiny_encoder, world, tmp_path):
    heads = UserHeads(CachedScorer(str(tiny_encoder), tmp_path / "scores"), tmp_path)
    first, second = world.questions[:2]
    assert first.user_id == second.user_id
    early = replace(first, history=first.history[:3])
    future = tuple(replace(item, label=world.labels[0]) for item in second.history)
    late = replace(second, history=(*first.history[:3], *future[3:]))
    for level in ("user", "cluster"):
        learned = heads.learn(world, replace(PLAN, level=level))
        alone = heads.scores(Dataset(world.task, world.labels, (early,)), learned)[0]
        together = heads.scores(Dataset(world.task, world.labels, (late, early)), learned)
        assert np.abs(together[1] - alone).max() <= 1e-5
        assert np.abs(together[0] - together[1]).max() > 0.01
        groups = heads.assigned(Dataset(world.task, world.labels, (late, early)), learned)
        assert groups[1] == heads.assigned(Dataset(world.task, world.labels, (early,)), learned)[0]


def test_one_odd_prompt_does_not_say_how_labels_are_asked(tiny_model, world, tmp_path):
    heads = UserHeads(CachedScorer(str(tiny_model), tmp_path / "scores"), tmp_path)
    asked = []
    real = heads._of
    heads._of = lambda prompts, plan: asked.append(list(prompts)) or real(prompts, plan)
    odd = replace(world.questions[0], text="x a film")
    heads.learn(Dataset(world.task, world.labels, (odd, *world.questions[1:])), PLAN)
    frame = world.questions[1].text.partition("description:")[0]
    assert asked
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
