import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from personalization.backbones.chat import Chat
from personalization.backbones.encoding import PairEncoder
from personalization.backbones.location import tells_the_day
from personalization.data.demo.world import make_world
from personalization.errors import DataError
from tests.tiny import make_tokenizer


def unigram() -> PreTrainedTokenizerFast:
    """A tokenizer in the manner of SentencePiece: a unigram model over text whose spaces are marked."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<s>", "<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator([q.text for q in make_world(0, 20).dataset.questions], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


def llama_2() -> PreTrainedTokenizerFast:
    """BPE with a mark before the text and for each space, bytes for what is unknown, and no merge across a mark."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("_"), normalizers.Replace(" ", "_")])
    every_byte = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<s>", *every_byte], show_progress=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Split("_", "merged_with_next")  # no merge crosses a space
    tokenizer.train_from_iterator([q.text for q in make_world(0, 20).dataset.questions], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


TOKENIZERS = {
    "byte-level": make_tokenizer(bos=False),
    "byte-level with BOS": make_tokenizer(bos=True),
    "unigram": unigram(),
    "as in Llama 2": llama_2(),
}
WORDS = ["a", " pilot", " shy", "\n", "  ", ".", " comedy", "com", " dark", "ed", "é", "\t", "answer:", "tag"]
CONTINUATIONS = [" comedy\n", " dark comedy\n", " 1\n", " 10\n", " x"]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.lists(st.sampled_from(WORDS), max_size=12), min_size=1, max_size=8))
def test_continuations_are_those_of_encoding_every_pair(name, texts):
    encoder = PairEncoder(TOKENIZERS[name], chat=False)
    prompts = ["".join(text) + "\nanswer:" for text in texts]
    heads, tails = encoder.encode(prompts, CONTINUATIONS)
    for prompt, head, tail in zip(prompts, heads, tails, strict=True):
        for continuation, tokens in zip(CONTINUATIONS, tail, strict=True):
            assert [*head.tolist(), *tokens] == TOKENIZERS[name](prompt + continuation)["input_ids"]


class Counting:
    """A tokenizer of characters that counts its texts, and may let a continuation depend on the beginning."""

    bos_token = chat_template = None

    def __init__(self, treacherous=False):
        self.encoded, self.treacherous = 0, treacherous

    def encoder(self):
        encoder = PairEncoder(self, chat=False)
        self.encoded = 0
        return encoder

    def __call__(self, texts, add_special_tokens):
        self.encoded += len(texts)
        shift = [1000 if self.treacherous and text.startswith("b") and text.endswith("!") else 0 for text in texts]
        return {"input_ids": [[*map(ord, text[:-1]), ord(text[-1]) + s] for text, s in zip(texts, shift, strict=True)]}


def test_each_prompt_is_encoded_twice_and_not_once_a_label():
    tokenizer = Counting()
    prompts = [f"question {i}\nanswer:" for i in range(100)]
    tokenizer.encoder().encode(prompts, [f" label {k}" for k in range(50)])
    assert tokenizer.encoded == 100 + 50 + 100


def test_a_tokenizer_that_looks_further_back_has_every_pair_encoded(caplog):
    tokenizer = Counting(treacherous=True)
    prompts = ["a\nanswer:", "b\nanswer:", "a b\nanswer:"]
    with caplog.at_level(logging.INFO):
        _, tails = PairEncoder(tokenizer, chat=False).encode(prompts, [" x", " y!"])
    assert "every pair is encoded" in caplog.text
    assert tails[1][1][-1] == ord("!") + 1000
    assert tails[0][1][-1] == tails[2][1][-1] == ord("!")


@pytest.mark.parametrize("order", [1, -1])
def test_each_text_gets_one_bos_whether_it_brings_its_own_or_not(order):
    tokenizer = TOKENIZERS["byte-level with BOS"]
    prompts = ["<s>a pilot\nanswer:", "a pilot\nanswer:"][::order]
    heads, _ = PairEncoder(tokenizer, chat=False).encode(prompts, [" x"])
    assert heads[0].tolist() == heads[1].tolist()
    assert (heads[0] == tokenizer.bos_token_id).sum() == 1


def test_a_chat_template_that_asks_is_told_the_same_day_every_day(tmp_path):
    tokenizer = make_tokenizer(bos=True)
    asks = "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    tokenizer.chat_template = asks + "{{ date_string }} {{ messages[0]['content'] }}:"
    assert Chat(tokenizer).conversation(None, "a film") == "26 Jul 2024 a film:"
    tokenizer.save_pretrained(tmp_path)
    assert not tells_the_day(tmp_path)
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }} {{ messages[0]['content'] }}:"
    tokenizer.save_pretrained(tmp_path)
    assert tells_the_day(tmp_path)


def test_an_empty_continuation_is_named():
    with pytest.raises(DataError, match="a continuation is empty"):
        PairEncoder(TOKENIZERS["byte-level"], chat=False).encode(["a"], [" x", ""])


def test_prompts_without_lines_are_grouped_by_their_end():
    tokenizer = Counting()
    prompts = [f"question {i} {'so it goes ' * 4}" for i in range(50)]
    tokenizer.encoder().encode(prompts, [f" label {k}" for k in range(50)])
    assert tokenizer.encoded == 50 + 50 + 50
