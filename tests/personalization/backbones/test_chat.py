"""Chat models are asked by their own template, where and with what they reply."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from personalization.backbones.cached import CachedScorer
from personalization.backbones.chat import Chat
from personalization.data.records import Dataset, Question
from personalization.errors import DataError
from personalization.methods.history.asking import Asking
from personalization.tasks.task import Task

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
OPENED = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")
GEMMA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
HEADERS = {
    "chatml": (CHATML, "<|im_start|>assistant\n"),
    "qwen3": (QWEN3, "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    "opened": (OPENED, "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
}
WORDS = ("dog", "heist", "train", "war", "child", "paris", "desert", "ship", "moon")
LABELS = ("comedy", "crime", "travel", "drama", "family", "romance", "western", "sea", "sci fi")
TASK = Task(name="films", chat={"user": "Which genre? {{text}}"})


def tokenizer_with(template):
    bare = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    bare.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "merged_with_next")]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="[UNK]", eos_token="<|end|>")
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"]}
    )
    pieces = ["\n", "user", "assistant", "system", "model", "Which", " genre?", "<think>", "</think>", "Be", " brief."]
    pieces += [f" {word}" for word in (*WORDS, *LABELS, "fi")] + [*WORDS, *LABELS, "sci"]
    tokenizer.add_tokens(list(dict.fromkeys(pieces)))
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module", params=HEADERS)
def replying(request, tmp_path_factory):
    """A tiny model that was taught to reply, after its template's header, with the right label and the end of turn."""
    template, header = HEADERS[request.param]
    tokenizer = tokenizer_with(template)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes))
    asked = [f"<|im_start|>user\nWhich genre? {word}<|im_end|>\n{header}" for word in WORDS]
    said = [f"{label}<|im_end|>" for label in LABELS]
    rows = [tokenizer(a + s, add_special_tokens=False)["input_ids"] for a, s in zip(asked, said, strict=True)]
    starts = [len(tokenizer(a, add_special_tokens=False)["input_ids"]) for a in asked]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    wanted = torch.full_like(ids, -100)
    for number, (row, start) in enumerate(zip(rows, starts, strict=True)):
        wanted[number, start : len(row)] = ids[number, start : len(row)]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(input_ids=ids, labels=wanted).loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, header


def films():
    return Dataset(TASK, LABELS, tuple(Question(word, word, word, ()) for word in WORDS))


def test_a_model_that_replies_right_is_right_and_the_labels_have_its_mass(replying):
    folder, header = replying
    scorer = CachedScorer(str(folder), None, device="cpu", chat=True)
    prompts, cut = Asking().prompts(scorer, films())
    assert cut == 0
    assert prompts[0] == f"<|im_start|>user\nWhich genre? dog<|im_end|>\n{header}"
    spoken = Asking().spoken(scorer, films())
    assert spoken[0] == "comedy<|im_end|>"
    table = scorer.label_logprobs(prompts, spoken)
    assert (table.argmax(axis=1) == np.arange(len(WORDS))).all()
    assert np.exp(logsumexp(table, axis=1)).mean() > 0.5


def test_asked_as_a_plain_model_it_does_not_speak_of_labels(replying):
    scorer = CachedScorer(str(replying[0]), None, device="cpu")
    prompts, _ = Asking().prompts(scorer, films())
    table = scorer.label_logprobs(prompts, [f" {label}\n" for label in LABELS])
    assert np.exp(logsumexp(table, axis=1)).mean() < 0.01


def test_a_system_text_stands_where_the_template_puts_it():
    chat = Chat(tokenizer_with(CHATML))
    assert chat.conversation("Be brief.", "dog").startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user")


def test_a_template_that_takes_no_system_text_is_one_line():
    chat = Chat(tokenizer_with(GEMMA))
    assert chat.end_of_turn == "<end_of_turn>"
    assert chat.conversation(None, "dog").endswith("<start_of_turn>model\n")
    with pytest.raises(DataError, match="refuses the conversation .System role not supported.; leave chat.system out"):
        chat.conversation("Be brief.", "dog")


def test_without_a_template_there_is_no_chat():
    with pytest.raises(DataError, match="has no chat template; set chat: false"):
        Chat(tokenizer_with(None))


def test_what_does_not_fit_loses_history_then_the_items_end_and_never_the_template(replying):
    """The header of the reply and the instruction stand in every prompt, however long item and history are."""
    scorer = CachedScorer(str(replying[0]), None, device="cpu", chat=True)
    long = Question("long", "u", "dog " * 100 + "moon", ())
    (prompt,), cut = Asking().prompts(scorer, Dataset(TASK, LABELS, (long,)))
    assert (cut, scorer.truncated) == (1, 1)
    assert prompt.startswith("<|im_start|>user\nWhich genre? dog dog")
    assert prompt.endswith((f"dog<|im_end|>\n{replying[1]}", f"dog <|im_end|>\n{replying[1]}"))
    assert np.isfinite(scorer.label_logprobs([prompt], Asking().spoken(scorer, films()))).all()
    wordy = TASK.model_copy(update={"chat": TASK.chat.model_copy(update={"user": "dog " * 100 + "{{text}}"})})
    with pytest.raises(DataError, match="question long: instruction, labels and template alone do not fit"):
        Asking().prompts(scorer, Dataset(wordy, LABELS, (long,)))
