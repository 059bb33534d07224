"""Ranking a history, and what follows from it, against brute force."""

import re
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace

import bm25s
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personalization.backbones.cached import CachedScorer
from personalization.data.demo.world import make_world
from personalization.data.records import Dataset, HistoryItem, Question
from personalization.methods.history.asking import Asking
from personalization.methods.history.bm25 import bm25, words
from personalization.methods.history.ranking import RANKINGS, TOLD_FROM, Histories, most_relevant
from personalization.methods.taste.priors import history_counts, log_softmax
from personalization.stages.chain import answer, fit
from personalization.stages.work import Tools, begin, scores_of
from personalization.tasks import task
from search_spaces import chain_space

LABELS = ("drama", "comedy", "action")
PLAIN = SimpleNamespace(ranking="recency", mix=0.0, width=1.0, half_life=1e12)


def params(**changes):
    return SimpleNamespace(**{**vars(PLAIN), **changes})


def question(text, history, user="u"):
    items = tuple(HistoryItem(str(i), item, label) for i, (item, label) in enumerate(history))
    return Question(text, user, f"tags: [{', '.join(LABELS)}] description: {text}", items, LABELS[0])


def world_of(*questions):
    return Dataset(task("LaMP_2"), LABELS, questions)


HISTORY = [
    ("a heist in paris", "action"),
    ("a dog learns to talk", "comedy"),
    ("the last train from paris", "drama"),
    ("a dog and a heist", "action"),
]


@pytest.fixture
def scorer(tiny_encoder, tmp_path):
    return CachedScorer(str(tiny_encoder), tmp_path)


@pytest.fixture
def causal(tiny_model, tmp_path):
    return CachedScorer(str(tiny_model), tmp_path)


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), max_size=30), st.integers(0, 35))
@settings(deadline=None)
def test_the_most_relevant_are_those_of_a_full_sort_with_the_newer_first(relevance, k):
    expected = sorted(range(len(relevance)), key=lambda i: (-relevance[i], -i))[:k]
    assert most_relevant(np.array(relevance), k).tolist() == expected


def test_the_top_of_100_000_items_takes_milliseconds_of_arithmetic():
    relevance = np.random.default_rng(0).random(100_000)
    assert most_relevant(relevance, 16).tolist() == np.argsort(-relevance)[:16].tolist()


def test_bm25_is_that_of_the_library_on_the_same_words():
    corpus = [item for item, _ in HISTORY]
    index = bm25s.BM25(method="lucene")
    index.index([words(text) for text in corpus], show_progress=False)
    assert bm25("A heist, in Paris!", corpus).tolist() == index.get_scores(["a", "heist", "in", "paris"]).tolist()
    assert bm25("A heist, in Paris!", corpus).argmax() == 0


@pytest.mark.parametrize(("query", "corpus"), [("xyz", ["a b", "c"]), ("", ["a"]), ("a", [""]), ("?!", ["", "!"])])
def test_without_a_common_word_bm25_is_zero(query, corpus):
    assert bm25(query, corpus).tolist() == [0.0] * len(corpus)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's a shy_baker, in 2024 -- naïve!", "it s a shy_baker in 2024 naïve"),
        ("हिन्दी में", "हिन्दी में"),
        ("مَدرَسة كبيرة", "مَدرَسة كبيرة"),
        ("한국어 문장", "한국어 문장"),
        ("猫", "猫"),
        ("東京の塔", "東京 京の の塔"),
        ("カフェー、a猫b2", "カフ フェ ェー a 猫 b2"),
        ("ภาษาน้ำ", "ภา าษ ษา าน้ น้ำ"),
        ("မြန်မာ", "မြန် န်မာ"),
        ("cafe\u0301", "caf\u00e9"),
    ],
)
def test_words_of_every_script(text, expected):
    assert words(text) == expected.split()


def test_bm25_finds_what_is_shared_in_a_script_without_spaces():
    corpus = ["東京の塔に登る猫", "砂漠を渡る二人の友人", "パリの銀行強盗"]
    assert bm25("パリで起きた銀行強盗の話", corpus).argmax() == 2
    assert bm25("砂漠の友人", corpus).argmax() == 1


def test_a_run_in_which_no_word_is_shared_says_so(caplog):
    apart = world_of(*[question("xyz", HISTORY) for _ in range(TOLD_FROM)])
    assert not Histories(None, apart).bm25.any()
    assert f"none of {TOLD_FROM} questions shares a word with its history" in caplog.text
    caplog.clear()
    for world in (world_of(question("xyz", HISTORY)), world_of(question("a dog", HISTORY), *apart.questions)):
        assert len(Histories(None, world).bm25) == len(world.questions) * len(HISTORY)
    assert "BM25 ranks nothing" not in caplog.text


@pytest.mark.parametrize("ranking", RANKINGS)
def test_only_what_ranks_by_similarity_embeds_anything(scorer, ranking):
    Histories(scorer, world_of(question("a dog in paris", HISTORY))).relevance(ranking, 0.5)
    assert bool(scorer.texts_asked) == (ranking in ("similarity", "mix"))


def test_an_unknown_ranking_is_refused(scorer):
    with pytest.raises(ValueError, match="ranking must be one of"):
        Histories(scorer, world_of(question("a dog", HISTORY))).relevance("alphabet")


def test_similarity_is_the_cosine_of_the_embeddings(scorer):
    histories = Histories(scorer, world_of(question("a dog in paris", HISTORY), question("war", HISTORY[:2])))
    for row, (text, items) in enumerate((("a dog in paris", HISTORY), ("war", HISTORY[:2]))):
        found = histories.similarity[histories.starts[row] : histories.starts[row + 1]]
        expected = scorer.embeddings([item for item, _ in items]) @ scorer.embeddings([text])[0]
        assert np.abs(found - expected).max() <= 1e-5


@pytest.mark.parametrize("ranking", RANKINGS)
def test_counts_are_those_of_a_loop(scorer, ranking):
    world = world_of(question("a dog in paris", HISTORY), question("war", []), question("a heist", HISTORY[:1]))
    histories = Histories(scorer, world)
    wanted = params(ranking=ranking, mix=0.25, width=0.2, half_life=3.0)
    counts = histories.counts(wanted)
    for row, asked in enumerate(world.questions):
        relevance = histories.relevance(ranking, 0.25)[histories.starts[row] : histories.starts[row + 1]]
        expected, weights = np.zeros(3), []
        for i, item in enumerate(asked.history):
            age = len(asked.history) - 1 - i
            weights.append(np.exp((relevance[i] - max(relevance)) / 0.2) * 0.5 ** (age / 3))
            expected[LABELS.index(item.label)] += weights[-1]
        effective = sum(weights) ** 2 / sum(w * w for w in weights) if weights else 0.0
        assert counts[row] == pytest.approx(expected / (sum(weights) or 1.0) * effective)
        assert counts[row].sum() <= len(asked.history) + 1e-9


def test_with_endless_width_and_half_life_counts_are_the_plain_ones(scorer):
    world = make_world(1, users=10).dataset
    counts = Histories(scorer, world).counts(params(ranking="bm25", width=1e9))
    assert np.allclose(counts, history_counts(world), atol=1e-6)


def test_a_narrow_kernel_leaves_the_nearest_items_label(scorer):
    histories = Histories(scorer, world_of(question("the last train from rome", HISTORY)))
    counts = histories.counts(params(ranking="bm25", width=1e-3))
    assert counts[0] == pytest.approx([1, 0, 0])


def test_labels_outside_the_task_do_not_count(scorer):
    world = world_of(question("war", [("peace", "documentary"), ("love", "drama")]))
    assert Histories(scorer, world).counts(PLAIN)[0].tolist() == [1, 0, 0]


@pytest.mark.parametrize("ranking", RANKINGS)
def test_the_item_that_is_asked_is_never_retrieved(scorer, ranking):
    world = world_of(question("a heist in paris", HISTORY))
    histories = Histories(scorer, world)
    assert [item.text for item in histories.items[0]] == [text for text, _ in HISTORY[1:]]
    assert "a heist in paris" not in {item.text for item in histories.top(ranking, 0.5, 4)[0]}


def test_items_are_ordered_by_date_and_those_without_are_the_oldest(scorer):
    years = [datetime(year, 1, 1) for year in (2020, 2018, 2019)]
    items = tuple(HistoryItem(str(i), f"text {i}", "drama", date) for i, date in enumerate(years))
    dated = replace(question("war", []), history=items)
    assert [item.id for item in Histories(scorer, world_of(dated)).items[0]] == ["1", "2", "0"]
    undated = replace(dated, history=(*items[:2], replace(items[2], date=None)))
    assert [item.id for item in Histories(scorer, world_of(undated)).items[0]] == ["2", "1", "0"]


def test_k_items_stand_in_front_of_the_question_best_first(causal):
    asked = question("a dog and a heist in rome", HISTORY)
    world = world_of(asked)
    ways = (Asking(2, "bm25"), Asking(0, "bm25"), Asking(9, "recency"))
    seen = [way.prompts(causal, world) for way in ways]
    by_date = asked.history[::-1]
    relevance = Histories(causal, world).bm25
    best = [asked.history[i] for i in np.argsort(-relevance)[:2]]
    expected = [world.task.prompt_of(asked.text, items) for items in (best, (), by_date)]
    assert seen == [([text], 0) for text in expected]


def scored(scorer, world, way):
    """Scores of prompts that are asked so, and how many were shortened."""
    prompts, shortened = way.prompts(scorer, world)
    return scorer.label_logprobs(prompts, way.spoken(scorer, world)), shortened


def test_items_that_do_not_fit_are_cut_to_equal_shares(causal):
    long = [(f"{word} " * 150, "drama") for word in ("heist", "dog", "train")]
    world = world_of(question("a dog", long), question("a cat", HISTORY))
    scores, shortened = scored(causal, world, Asking(3, "recency"))
    assert np.isfinite(scores).all()
    assert shortened == 1
    assert Asking(0).prompts(causal, world)[1] == 0
    assert causal.truncated == 0
    text = Asking(3, "recency").prompts(causal, world)[0][0]
    left = [re.search(rf'"({word}[^"]*)"', text)[1] for word in ("heist", "dog", "train")]
    assert len({len(causal.backbone.tokenizer(item, add_special_tokens=False)["input_ids"]) for item in left}) == 1


def test_a_long_question_without_history_and_no_question_at_all(causal):
    way = Asking(2, "recency")
    scores, _ = scored(causal, world_of(question("war " * 400, []), question("a dog", HISTORY)), way)
    assert np.isfinite(scores).all()
    assert causal.truncated == 1
    assert scored(causal, world_of(), way)[0].shape == (0, 3)


@pytest.mark.parametrize("history", [[], [("a dog", "comedy")]])
def test_users_with_little_history_get_what_there_is(scorer, causal, history):
    world = world_of(question("a heist", history, "new"), question("war", HISTORY))
    for ranking in RANKINGS:
        wanted = params(ranking=ranking, mix=0.5)
        counts = Histories(scorer, world).counts(wanted)
        assert counts[0].tolist() == [0, len(history), 0]
        assert len(Histories(scorer, world).top(ranking, 0.5, 8)[0]) == len(history)
    assert np.isfinite(scored(causal, world, Asking(4, "bm25"))[0]).all()


def test_10_000_items_of_one_user(scorer):
    random = np.random.default_rng(0)
    nouns = ["dog", "heist", "train", "war", "child", "paris", "desert", "ship"]
    texts = [" ".join(random.choice(nouns, 3)) for _ in range(10_000)]
    world = world_of(question("a ship in the desert", [(text, LABELS[i % 3]) for i, text in enumerate(texts)]))
    histories = Histories(scorer, world)
    for ranking in RANKINGS:
        assert len(histories.top(ranking, 0.5, 16)[0]) == 16
        assert histories.counts(params(ranking=ranking, width=0.1)).sum() > 0


def test_another_scale_is_a_softmax_of_the_similarities_at_that_scale(scorer):
    world, tools = world_of(question("a heist", HISTORY), question("war", HISTORY)), Tools(scorer)
    chain = chain_space(("prompt", "calibration")).of_full({"prompt.scale": 50.0})
    found = answer(fit(chain, begin(world, tools), tools), begin(world, tools), tools).answer.log_probs
    cosines = scorer.embeddings(["a heist", "war"]) @ scorer.embeddings(LABELS).T
    assert np.allclose(found, log_softmax(50.0 * cosines), atol=1e-4)


def test_another_text_for_the_labels_is_another_table(scorer):
    world, tools = world_of(question("a heist", HISTORY)), Tools(scorer)
    plain, spoken = scored(scorer, world, Asking())[0], scored(scorer, world, Asking(template="a {label} film"))[0]
    assert (plain != spoken).any()
    expected = scorer.label_logprobs(["a heist"], [f"a {label} film" for label in LABELS])
    assert (spoken == expected).all()
    chain = chain_space(("prompt", "calibration")).of_full({"prompt.template": "a {label} film"})
    assert (scores_of(fit(chain, begin(world, tools), tools).tune[-1], tools) == expected).all()


def test_an_encoder_is_asked_with_the_bare_text(scorer, causal):
    world = world_of(question("a heist", HISTORY))
    assert Asking(3, "bm25").prompts(scorer, world) == (["a heist"], 0)
    assert Asking(template="a {label} film").spoken(causal, world) == Asking().spoken(causal, world)


def test_what_is_asked_about_takes_the_place_of_the_question(scorer, causal):
    world = world_of(question("a heist", HISTORY))
    texts = Asking(3).about(causal, world, world.questions[0], ["", "a dog"])
    assert texts == [task("LaMP_2").prompt_of(question(text, []).text).replace(": \n", ":\n") for text in ("", "a dog")]
    assert Asking(3).about(scorer, world, world.questions[0], ["", "a dog"]) == ["", "a dog"]
