import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from personalization.backbones.encoding import PairEncoder
from personalization.data.demo.world import make_world
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

    def __call__(self, texts, add_special_tokens):
        self.encoded += len(texts)
        shift = [1000 if self.treacherous and text.startswith("b") and text.endswith("!") else 0 for text in texts]
        return {"input_ids": [[*map(ord, text[:-1]), ord(text[-1]) + s] for text, s in zip(texts, shift, strict=True)]}


def test_each_prompt_is_encoded_twice_and_not_once_a_label():
    tokenizer = Counting()
    prompts = [f"question {i}\nanswer:" for i in range(100)]
    PairEncoder(tokenizer, chat=False).encode(prompts, [f" label {k}" for k in range(50)])
    assert tokenizer.encoded == 100 + 50 + 100


def test_a_tokenizer_that_looks_further_back_has_every_pair_encoded(caplog):
    tokenizer = Counting(treacherous=True)
    prompts = ["a\nanswer:", "b\nanswer:", "a b\nanswer:"]
    with caplog.at_level(logging.INFO):
        _, tails = PairEncoder(tokenizer, chat=False).encode(prompts, [" x", " y!"])
    assert "every pair is encoded" in caplog.text
    assert tails[1][1][-1] == ord("!") + 1000
    assert tails[0][1][-1] == tails[2][1][-1] == ord("!")
