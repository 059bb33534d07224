import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from personalization.backbones.causal import CausalBackbone, load_causal
from personalization.errors import DataError
from tests.tiny import make_model, make_tokenizer

LABELS = [" sci-fi\n", " comedy\n", " based on a book\n", " dark comedy\n", " dark\n", " 1\n", " 10\n"]
PROMPTS = [
    "a shy baker discovers a bank heist in paris.\nanswer:",
    "a pilot\nanswer:",
    "Which tag does this movie relate to among the following tags? description: a retired nurse must face a deadly "
    "virus in the big city, and a young lawyer remembers a chess genius by the sea.\nanswer:",
    "tag:",
]


def one_at_a_time(model, tokenizer, prompt: str, continuation: str) -> float:
    """The definition: one unpadded row, full logits, sum over the continuation's tokens."""
    head = tokenizer(prompt)["input_ids"]
    whole = tokenizer(prompt + continuation)["input_ids"]
    with torch.inference_mode():
        log_probs = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(float(log_probs[i - 1, whole[i]]) for i in range(len(head), len(whole)))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3", "gpt2", "bloom"])
def test_scores_equal_lm_eval_and_one_at_a_time(architecture, seed):
    model, tokenizer = make_model(architecture, seed), make_tokenizer(bos=seed == 1)
    ours = CausalBackbone(model, tokenizer).label_logprobs(PROMPTS, LABELS)
    reference = np.array([[one_at_a_time(model, tokenizer, p, c) for c in LABELS] for p in PROMPTS])
    harness = HFLM(
        pretrained=model, tokenizer=tokenizer, batch_size=4, add_bos_token=seed == 1, device="cpu", max_length=256
    )
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=(p, c), idx=0) for p in PROMPTS for c in LABELS
    ]
    theirs = np.array([r[0] for r in harness.loglikelihood(requests, disable_tqdm=True)]).reshape(reference.shape)
    for other in (reference, theirs):
        assert np.abs(ours - other).max() <= 1e-4
        assert (ours.argmax(axis=1) == other.argmax(axis=1)).all()
    assert len(set(reference.argmax(axis=1))) > 1 or np.ptp(reference) > 1


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_both_attention_implementations_agree(attention):
    model, tokenizer = make_model("llama"), make_tokenizer(bos=True)
    model.set_attn_implementation(attention)
    ours = CausalBackbone(model, tokenizer).label_logprobs(PROMPTS, LABELS)
    reference = np.array([[one_at_a_time(model, tokenizer, p, c) for c in LABELS] for p in PROMPTS])
    assert np.abs(ours - reference).max() <= 1e-4


def test_result_does_not_depend_on_batch_order_padding_side_or_budget():
    model, tokenizer = make_model("gpt2"), make_tokenizer(bos=False)
    backbone = CausalBackbone(model, tokenizer)
    expected = backbone.label_logprobs(PROMPTS, LABELS)
    tokenizer.padding_side = "left"
    backbone.budget.halve(1)
    shuffled = backbone.label_logprobs(PROMPTS[::-1], LABELS)[::-1]
    assert np.abs(expected - shuffled).max() <= 1e-5


def test_terminator_keeps_a_prefix_label_from_winning_by_construction():
    model, tokenizer = make_model("llama"), make_tokenizer(bos=True)
    scores = CausalBackbone(model, tokenizer).label_logprobs(PROMPTS, [" 1", " 10"])
    assert (scores[:, 0] >= scores[:, 1]).all()
    fair = CausalBackbone(model, tokenizer).label_logprobs(PROMPTS, [" 1\n", " 10\n"])
    assert not np.allclose(scores[:, 0], fair[:, 0])


def test_long_prompt_loses_its_beginning_and_is_counted():
    model, tokenizer = make_model("llama"), make_tokenizer(bos=True)
    backbone = CausalBackbone(model, tokenizer)
    long = "a shy baker discovers a bank heist in paris. " * 60 + "\nanswer:"
    scores = backbone.label_logprobs([long, PROMPTS[0]], LABELS)
    assert backbone.truncated == 1
    assert np.isfinite(scores).all()
    ids = tokenizer(long)["input_ids"]
    longest = max(len(tokenizer(long + c)["input_ids"]) - len(ids) for c in LABELS)
    kept = [ids[0], *ids[len(ids) - (256 - longest) :]]
    continuation = tokenizer(long + LABELS[0])["input_ids"][len(ids) :]
    whole = kept + continuation
    with torch.inference_mode():
        log_probs = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    expected = sum(float(log_probs[i - 1, whole[i]]) for i in range(len(kept), len(whole)))
    assert scores[0, 0] == pytest.approx(expected, abs=1e-4)


def test_a_label_longer_than_the_context_is_refused():
    backbone = CausalBackbone(make_model("llama"), make_tokenizer(bos=True))
    with pytest.raises(DataError, match="leaves no room in a context of 256"):
        backbone.label_logprobs(PROMPTS, [" comedy" * 300])


def test_merged_boundary_is_refused_by_name():
    backbone = CausalBackbone(make_model("llama"), make_tokenizer(bos=False))
    with pytest.raises(DataError, match=r"'answer: '.*'comedy"):
        backbone.label_logprobs(["answer: "], ["comedy\n"])


def test_chat_template_never_doubles_the_bos():
    tokenizer = make_tokenizer(bos=True)
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}[{{ m['content'] }}]{% endfor %}:"
    backbone = CausalBackbone(make_model("llama"), tokenizer, chat=True)
    (head,), _ = backbone.encoder.encode(["a movie"], [" comedy\n"])
    assert (head == tokenizer.bos_token_id).sum() == 1
    assert tokenizer.decode(head) == "<s>[a movie]:"


def test_chat_without_a_template_is_refused():
    with pytest.raises(DataError, match="no chat template"):
        CausalBackbone(make_model("llama"), make_tokenizer(bos=True), chat=True)


def test_empty_prompt_starts_from_bos():
    model, tokenizer = make_model("llama"), make_tokenizer(bos=False)
    scores = CausalBackbone(model, tokenizer).label_logprobs([""], [" comedy\n"])
    ids = [tokenizer.bos_token_id, *tokenizer(" comedy\n")["input_ids"]]
    with torch.inference_mode():
        log_probs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    expected = sum(float(log_probs[i - 1, ids[i]]) for i in range(1, len(ids)))
    assert scores[0, 0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("prompts", "continuations"), [([], LABELS), (PROMPTS, [])])
def test_nothing_to_score_is_an_empty_table(prompts, continuations):
    backbone = CausalBackbone(make_model("llama"), make_tokenizer(bos=True))
    assert backbone.label_logprobs(prompts, continuations).shape == (len(prompts), len(continuations))


def test_loading_from_a_folder_gives_the_same_scores(tiny_model):
    loaded = load_causal(str(tiny_model)).label_logprobs(PROMPTS, LABELS)
    direct = CausalBackbone(make_model("llama"), make_tokenizer(bos=True)).label_logprobs(PROMPTS, LABELS)
    assert np.abs(loaded - direct).max() <= 1e-5


def test_pickled_weights_are_refused(tiny_model, tmp_path):
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(DataError, match="safetensors"):
        load_causal(str(tmp_path))
