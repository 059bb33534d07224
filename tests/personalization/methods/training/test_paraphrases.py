"""Items in the model's own words: what is kept, what is counted, and that a seed gives the same bits."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from personalization.backbones.cached import CachedScorer
from personalization.data.records import Dataset
from personalization.errors import UsageError
from personalization.methods.adapters.user_adapters import Plan, UserAdapters
from personalization.methods.history.asking import Asking
from personalization.methods.history.labelled import held_out, labelled_items
from personalization.methods.training import paraphrases
from personalization.methods.training.paraphrases import with_paraphrases
from personalization.stages import stage
from personalization.stages.work import Tools, begin
from search_spaces import chain_space
from tests.tiny import short_world


@pytest.fixture(scope="module")
def items():
    return labelled_items(short_world(7, users=6, questions_per_user=1, items=4))


@pytest.fixture
def scorer(tiny_model):
    return CachedScorer(str(tiny_model), None)


def labels(questions, items, scorer):
    some = Dataset(items.task, items.labels, tuple(replace(q, history=()) for q in questions))
    asking = Asking()
    return scorer.label_logprobs(asking.prompts(scorer, some)[0], asking.spoken(scorer, some)).argmax(axis=1)


def test_nothing_is_kept_that_the_model_gives_another_label(items, scorer, tmp_path):
    told = with_paraphrases(items, 1.0, Asking(), scorer, tmp_path)
    pairs = [(b, a) for b, a in zip(items.questions, told.questions, strict=True) if a.text != b.text]
    written = json.loads(next(tmp_path.glob("paraphrases-*.json")).read_text())
    assert pairs
    assert len(pairs) < len(items.questions)  # a random model gives some another label
    assert (labels([b for b, _ in pairs], items, scorer) == labels([a for _, a in pairs], items, scorer)).all()
    for before, after in pairs:
        assert replace(after, text=before.text) == before
        assert items.task.item(after.text) == written[items.task.item(before.text)].strip()
    refused = [b for b, a in zip(items.questions, told.questions, strict=True) if a is b]
    wrong = [replace(q, text=items.task.about(q.text, written[items.task.item(q.text)])) for q in refused]
    other = labels(refused, items, scorer) != labels(wrong, items, scorer)
    empty = np.array([not written[items.task.item(q.text)] for q in refused])
    assert (other | empty).all()


@pytest.mark.slow
def test_what_is_written_depends_on_the_item_alone_and_is_read_again(items, scorer, tmp_path, monkeypatch):
    before = torch.random.get_rng_state()
    told = with_paraphrases(items, 1.0, Asking(), scorer, tmp_path / "a")
    assert (torch.random.get_rng_state() == before).all()
    backwards = Dataset(items.task, items.labels, items.questions[::-1])
    again = with_paraphrases(backwards, 1.0, Asking(), scorer, tmp_path / "b")
    assert [q.text for q in again.questions[::-1]] == [q.text for q in told.questions]
    own = {q.id: q for q, before in zip(told.questions, items.questions, strict=True) if q != before}
    rate = sorted(map(paraphrases._drawn, own))[1]
    some = with_paraphrases(items, rate, Asking(), scorer, tmp_path / "b")
    expected = [own[q.id] if q.id in own and paraphrases._drawn(q.id) < rate else q for q in items.questions]
    assert list(some.questions) == expected
    assert sum(q != before for q, before in zip(expected, items.questions, strict=True)) == 1

    def asked_again(*_):
        raise AssertionError

    monkeypatch.setattr(paraphrases, "_line", asked_again)
    assert with_paraphrases(items, 1.0, Asking(), scorer, tmp_path / "a") == told
    assert with_paraphrases(items, 0.0, Asking(), scorer, tmp_path / "c") is items


@pytest.mark.slow
def test_the_model_is_as_it_was(items, scorer, tmp_path):
    model, asked = scorer.backbone.model, torch.arange(3, 20)[None]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.inference_mode():
        before = model(asked).logits
        with_paraphrases(items, 1.0, Asking(), scorer, tmp_path)
        assert (model(asked).logits == before).all()
    assert all((tensor == weights[name]).all() for name, tensor in model.state_dict().items())


def test_an_encoder_cannot_write(items, tiny_encoder, tmp_path):
    with pytest.raises(UsageError, match="an encoder cannot write"):
        with_paraphrases(items, 0.5, Asking(), CachedScorer(str(tiny_encoder), None), tmp_path)


@pytest.mark.slow
def test_items_that_each_rate_changes_are_counted_by_user(tiny_model, tmp_path):
    world, scorer = short_world(7, users=6, questions_per_user=1), CachedScorer(str(tiny_model), None)
    rates = {"word_dropout": 0.3, "history_dropout": 0.5, "paraphrase": 1.0}
    plan = Plan(epochs=2, rank=2, asking=Asking(1, "recency"), **rates)
    trained = UserAdapters(scorer, tmp_path / "one").learn(world, plan)
    learned, _ = held_out(labelled_items(world), "unified")
    told = with_paraphrases(learned, 1.0, plan.asking, scorer, tmp_path / "one")
    expected = dict.fromkeys((q.user_id for q in learned.questions), 0)
    for before, after in zip(learned.questions, told.questions, strict=True):
        expected[before.user_id] += before.text != after.text
    assert trained.record["varied"]["paraphrase"] == expected
    assert set(trained.record["varied"]) == set(rates)
    assert all(sum(counts.values()) for counts in trained.record["varied"].values())
    twin = UserAdapters(scorer, tmp_path / "two").learn(world, plan)
    assert twin.content == trained.content  # the same bits


@pytest.mark.slow
def test_the_stage_says_how_many(tiny_model, tmp_path):
    params = chain_space(("adapter", "calibration")).of_full(
        {
            "adapter.adapter": "lora",
            "adapter.blend": 1.0,
            "adapter.epochs": 2,
            "adapter.rank": 2,
            "adapter.paraphrase": 1.0,
        }
    )
    tools = Tools(CachedScorer(str(tiny_model), None), folder=tmp_path)
    work = begin(short_world(7, users=3, questions_per_user=1, items=4), tools, "tune")
    learned = stage("adapter").learn(params["adapter"], work, tools)
    (said,) = [
        line
        for line in stage("adapter").facts(params["adapter"], learned, work, work, tools).remarks
        if "changes" in line
    ]
    counts = learned.record["varied"]["paraphrase"].values()
    assert said.startswith(f"paraphrase changes {sum(counts)} of {learned.record['items']} items")
