"""Contract: every backbone listed in BACKBONES."""

from threading import Thread

import numpy as np
import pytest
import torch

from personalization.backbones import BACKBONES, SCALE, load_backbone
from personalization.backbones.cached import CachedScorer
from personalization.backbones.location import model_kind
from personalization.errors import DataError, UsageError
from search_spaces.prompt import BASELINE

TEXTS = ["a heist in paris", "two friends cross the desert to find water", "a dog", "war and peace, told by a child"]
LABELS = {"causal": [" comedy\n", " drama\n", " a long label\n"], "encoder": ["comedy", "drama", "a long label"]}


@pytest.fixture(params=BACKBONES)
def kind(request):
    return request.param


@pytest.fixture
def folder(kind, tiny_model, tiny_encoder):
    return {"causal": tiny_model, "encoder": tiny_encoder}[kind]


@pytest.fixture
def backbone(kind, folder):
    return load_backbone(kind, str(folder), "float32", "cpu", None, False)


def test_the_kind_is_read_from_the_folder(kind, folder):
    assert model_kind(folder) == kind


def test_scores_are_log_probabilities_of_each_label(kind, backbone):
    scores = backbone.label_logprobs(TEXTS, LABELS[kind])
    assert scores.shape == (4, 3)
    assert scores.dtype == np.float32
    assert (scores <= 0).all()
    assert len(np.unique(scores.round(4))) == 12


def test_order_and_company_change_no_score(kind, backbone):
    scores = backbone.label_logprobs(TEXTS, LABELS[kind])
    turned = backbone.label_logprobs(TEXTS[::-1], LABELS[kind])[::-1]
    alone = np.concatenate([backbone.label_logprobs([text], LABELS[kind]) for text in TEXTS])
    assert np.abs(scores - turned).max() <= 1e-5
    assert np.abs(scores - alone).max() <= 1e-5


def test_nothing_gives_an_empty_table(kind, backbone):
    assert backbone.label_logprobs([], LABELS[kind]).shape == (0, 3)
    assert backbone.label_logprobs(TEXTS, []).shape == (4, 0)


def test_states_are_of_every_layer(backbone):
    states = backbone.last_states(TEXTS)
    assert states.shape == (4, backbone.depth, backbone.width)
    assert np.abs(states[0] - states[1]).max() > 0.01
    assert np.abs(states - np.concatenate([backbone.last_states([text]) for text in TEXTS])).max() <= 1e-4


def test_states_of_chosen_layers_are_those_of_all(backbone):
    chosen = [backbone.depth - 1, 0]
    assert np.abs(backbone.last_states(TEXTS, chosen) - backbone.last_states(TEXTS)[:, chosen]).max() <= 1e-5


def test_fixed_prompts_without_an_edit_have_the_scores_of_a_plain_pass(kind, backbone):
    fixed = backbone.fixed(TEXTS, LABELS[kind])
    assert np.abs(fixed.table() - backbone.label_logprobs(TEXTS, LABELS[kind])).max() <= 1e-4


def test_embeddings_have_length_one_and_equal_texts_have_equal_ones(backbone):
    embeddings = backbone.embeddings([*TEXTS, TEXTS[0]])
    assert embeddings.dtype == np.float32
    assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    assert np.abs(embeddings[0] - embeddings[4]).max() <= 1e-6
    assert (embeddings[0] @ embeddings[1:4].T < 0.9999).all()
    alone = np.concatenate([backbone.embeddings([text]) for text in TEXTS])
    assert np.abs(embeddings[:4] - alone).max() <= 1e-5


def test_texts_that_do_not_fit_an_encoder_are_counted(tiny_encoder):
    backbone = load_backbone("encoder", str(tiny_encoder), "float32", "cpu", None, False)
    backbone.label_logprobs([*TEXTS, "a very long story " * 200], LABELS["encoder"])
    assert backbone.truncated == 1


def test_progress_reaches_the_end(kind, backbone):
    seen = []
    backbone.label_logprobs(TEXTS, LABELS[kind], lambda done, total: seen.append((done, total)))
    assert seen[-1] == (4, 4)


def test_what_is_stored_is_read_without_the_model(kind, folder, tmp_path, monkeypatch):
    first = CachedScorer(str(folder), tmp_path)
    scores = first.label_logprobs(TEXTS, LABELS[kind])
    layers = range(first.backbone.depth)
    states, embeddings = first.last_states(TEXTS, layers), first.embeddings(TEXTS)
    again = CachedScorer(str(folder), tmp_path)
    monkeypatch.setattr("personalization.backbones.cached.load_backbone", None)
    assert (again.label_logprobs(TEXTS, LABELS[kind]) == scores).all()
    assert (again.embeddings(TEXTS[::-1]) == embeddings[::-1]).all()
    assert states.shape == (4, first.backbone.depth, first.backbone.width)
    monkeypatch.setattr(first.backbone, "last_states", None)
    assert (first.last_states(TEXTS, layers) == states).all()


def test_without_a_folder_nothing_is_written_and_the_answers_are_the_same(kind, folder, tmp_path, monkeypatch):
    stored = CachedScorer(str(folder), tmp_path / "scores")
    expected = stored.label_logprobs(TEXTS, LABELS[kind]), stored.embeddings(TEXTS), stored.last_states(TEXTS, [1])
    before = sorted(path.name for path in tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    bare = stored.unstored()
    assert bare.backbone is stored.backbone
    assert bare.lock is stored.lock
    for scorer in (bare, CachedScorer(str(folder), None)):
        assert scorer.folder is scorer.shelf is None
        found = scorer.label_logprobs(TEXTS, LABELS[kind]), scorer.embeddings(TEXTS), scorer.last_states(TEXTS, [1])
        assert all(np.abs(a - b).max() <= 1e-5 for a, b in zip(found, expected, strict=True))
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_text_is_embedded_once_in_whichever_list_it_comes(folder, tmp_path):
    asked = []
    for place in (tmp_path, None):
        scorer = CachedScorer(str(folder), place)
        real = scorer.backbone.embeddings
        scorer.backbone.embeddings = lambda texts, *rest, real=real: asked.append(list(texts)) or real(texts, *rest)
        first = scorer.embeddings(TEXTS[:2])
        assert (scorer.embeddings([*TEXTS[1:], TEXTS[1]])[[0, 3]] == first[[1, 1]]).all()
    assert asked == [TEXTS[:2], TEXTS[2:]] * 2


def test_a_text_that_was_cut_is_counted_once(tiny_encoder, tmp_path):
    scorer = CachedScorer(str(tiny_encoder), tmp_path)
    long = [*TEXTS, "a very long story " * 200]
    for labels in (LABELS["encoder"], LABELS["encoder"][:2]):
        scorer.label_logprobs(long, labels)
    assert scorer.truncated == 1
    again = CachedScorer(str(tiny_encoder), tmp_path)
    again.label_logprobs(long, LABELS["encoder"])
    assert again.truncated == 1


def test_the_list_of_blocks_can_be_named(kind, folder, backbone, tmp_path):
    """A second list as long as the model is deep makes the layout ambiguous; a path decides."""
    path = next(name for name, module in backbone.model.named_modules() if module is backbone.layers)
    named = CachedScorer(str(folder), tmp_path, blocks=path)
    for one in (backbone, named.backbone):
        one.model.extra = torch.nn.ModuleList([torch.nn.Identity()] * backbone.depth)
    with pytest.raises(DataError, match=r"extra of its modules could be its .* name one with model.blocks"):
        list(backbone.layers)
    assert named.backbone.layers is named.backbone.model.get_submodule(path)
    assert named.identity != CachedScorer(str(folder), tmp_path).identity


def test_a_second_thread_waits_while_the_model_is_edited(kind, folder, tmp_path):
    scorer = CachedScorer(str(folder), tmp_path / "a")
    plain = CachedScorer(str(folder), tmp_path / "b").label_logprobs(TEXTS, LABELS[kind])
    found = []
    other = Thread(target=lambda: found.append(scorer.label_logprobs(TEXTS, LABELS[kind])))
    with scorer.lock:
        layer = scorer.backbone.layers[0]
        edit = layer.register_forward_hook(lambda _, __, output: torch.zeros_like(output))
        assert np.abs(scorer.last_states(TEXTS, [0])).max() == 0
        other.start()
        other.join(0.5)
        assert not found
        edit.remove()
    other.join()
    assert np.abs(found[0] - plain).max() <= 1e-6


def test_only_a_causal_model_has_a_chat_template(tiny_encoder):
    with pytest.raises(UsageError, match="it has no chat template; set chat: false"):
        load_backbone("encoder", str(tiny_encoder), "float32", "cpu", None, True)


def test_the_baseline_scale_is_the_encoders():
    assert BASELINE.scale == SCALE
