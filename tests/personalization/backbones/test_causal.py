import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from personalization.backbones.causal import CausalBackbone, load_causal
from personalization.backbones.chat import Chat
from personalization.data.demo.world import make_world
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
    from lm_eval.api.instance import Instance  # here, for other workers need not load it
    from lm_eval.models.huggingface import HFLM

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


@pytest.mark.parametrize(("prompt", "label"), [("a shy baker " * 200, LABELS[0]), (PROMPTS[0], " comedy" * 300)])
def test_what_does_not_fit_the_context_is_refused(prompt, label):
    backbone = CausalBackbone(make_model("llama"), make_tokenizer(bos=True))
    with pytest.raises(DataError, match=r"a prompt of \d+ tokens and a label of \d+ do not fit a context of 256"):
        backbone.label_logprobs([PROMPTS[1], prompt], [label])


def test_merged_boundary_is_refused_by_name():
    backbone = CausalBackbone(make_model("llama"), make_tokenizer(bos=False))
    with pytest.raises(DataError, match=r"'answer: '.*'comedy"):
        backbone.label_logprobs(["answer: "], ["comedy\n"])


def test_chat_template_never_doubles_the_bos():
    tokenizer = make_tokenizer(bos=True)
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}[{{ m['content'] }}]{% endfor %}:"
    backbone = CausalBackbone(make_model("llama"), tokenizer, chat=True)
    (head,), _ = backbone.encoder.encode([Chat(tokenizer).conversation(None, "a movie")], [" comedy\n"])
    assert (head == tokenizer.bos_token_id).sum() == 1
    assert tokenizer.decode(head) == "<s>[a movie]:"


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


def unigram(kind):
    """A tokenizer that folds a newline: into a space, as XGLM's does, or into nothing, as T5's; T5's appends EOS."""
    spaces = {"xglm": pre_tokenizers.Metaspace(), "t5": [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]}
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace(Regex(r"[\s]+"), " ")
    tokenizer.pre_tokenizer = spaces[kind] if kind == "xglm" else pre_tokenizers.Sequence(spaces[kind])
    trainer = trainers.UnigramTrainer(vocab_size=390, special_tokens=["<s>", "</s>", "<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator([*PROMPTS, *LABELS, *(q.text for q in make_world(0, 20).dataset.questions)], trainer)
    form = {"xglm": "</s> $A", "t5": "$A </s>"}[kind]
    tokenizer.post_processor = processors.TemplateProcessing(single=form, special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


def ended_by_eos(model, tokenizer, prompt, label):
    """The definition with EOS as terminator, from the tokenizer's bare pieces."""
    before = [tokenizer.eos_token_id] if tokenizer("a")["input_ids"][0] == tokenizer.eos_token_id else []
    head = [*before, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    whole = [*before, *tokenizer(prompt + label, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert whole[: len(head)] == head
    with torch.inference_mode():
        log_probs = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(float(log_probs[i - 1, whole[i]]) for i in range(len(head), len(whole)))


@pytest.mark.parametrize("kind", ["xglm", "t5"])
def test_where_a_newline_is_no_token_answers_end_with_eos(kind):
    model, tokenizer = make_model("llama"), unigram(kind)
    scores = CausalBackbone(model, tokenizer).label_logprobs(PROMPTS, LABELS)
    expected = [[ended_by_eos(model, tokenizer, p, c.rstrip("\n")) for c in LABELS] for p in PROMPTS]
    assert np.abs(scores - np.array(expected)).max() <= 1e-4
    tokenizer.eos_token = None
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    with pytest.raises(DataError, match="no token of its own and has no EOS token"):
        CausalBackbone(model, tokenizer).label_logprobs(PROMPTS, LABELS)


def test_a_tokenizer_that_appends_eos_scores_as_one_that_does_not():
    model, plain, appending = make_model("llama"), make_tokenizer(bos=True), make_tokenizer(bos=True)
    specials = [("<s>", plain.bos_token_id), ("</s>", plain.eos_token_id)]
    form = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=specials)
    appending.backend_tokenizer.post_processor = form
    assert appending("a")["input_ids"][-1] == plain.eos_token_id
    ours, theirs = (CausalBackbone(model, tokenizer) for tokenizer in (appending, plain))
    prompts = [*PROMPTS, "", "<s>a pilot"]
    assert (ours.label_logprobs(prompts, LABELS) == theirs.label_logprobs(prompts, LABELS)).all()
    assert (ours.embeddings(prompts) == theirs.embeddings(prompts)).all()


def test_a_label_whose_tokens_begin_anothers_is_ended_by_eos():
    """A label with a newline inside begins with another one's text and terminator."""
    model, tokenizer, labels = make_model("llama"), make_tokenizer(bos=True), [" dark\n", " dark\ncomedy\n", " x\n"]
    scores = CausalBackbone(model, tokenizer).label_logprobs(PROMPTS[:1], labels)
    for k, label in enumerate(labels):
        head = tokenizer(PROMPTS[0])["input_ids"]
        whole = [*tokenizer(PROMPTS[0] + label[:-1])["input_ids"], tokenizer.eos_token_id]
        with torch.inference_mode():
            log_probs = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
        expected = sum(float(log_probs[i - 1, whole[i]]) for i in range(len(head), len(whole)))
        assert scores[0, k] == pytest.approx(expected, abs=1e-4)


def test_labels_that_the_tokenizer_cannot_tell_apart_are_named():
    tokenizer = make_tokenizer(bos=True)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(DataError, match=r"labels ' [cC]omedy' and ' [cC]omedy' are the same tokens"):
        CausalBackbone(make_model("llama"), tokenizer).label_logprobs(PROMPTS, [" Comedy\n", " x\n", " comedy\n"])


def test_embeddings_are_of_texts_and_not_of_the_template_or_its_bos():
    model, texts = make_model("llama"), ["a heist in paris", "a dog"]
    tokenizer = make_tokenizer(bos=True)
    plain = CausalBackbone(model, tokenizer).embeddings(texts)
    tokenizer.chat_template = "{{ bos_token }}SYSTEM you answer. {% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert (CausalBackbone(model, tokenizer, chat=True).embeddings(texts) == plain).all()
    with torch.inference_mode():
        states = model.model(torch.tensor([tokenizer(texts[0])["input_ids"]]))[0][0]
    expected = states[1:].mean(0) / states[1:].mean(0).norm()
    assert np.abs(plain[0] - expected.numpy()).max() <= 1e-5
