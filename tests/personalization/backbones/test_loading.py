"""A model is the one in its folder, or it is refused in one line."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from personalization.backbones.causal import load_causal
from personalization.backbones.encoder import load_encoder
from personalization.backbones.loading import loading
from personalization.backbones.location import locate_model, model_fingerprint
from personalization.errors import DataError
from tests.tiny import ARCHITECTURES, SIZES, make_model, make_tokenizer, of_table, save_as_encoder

LOADERS = {"causal": load_causal, "encoder": load_encoder}
PROMPTS, LABELS = ["a shy baker\nanswer:", "a pilot\nanswer:"], [" comedy\n", " drama\n"]


@pytest.fixture(params=LOADERS)
def kind(request):
    return request.param


@pytest.fixture
def folder(kind, tiny_model, tiny_encoder, tmp_path):
    """A copy of a model folder of each kind, to be damaged."""
    shutil.copytree({"causal": tiny_model, "encoder": tiny_encoder}[kind], tmp_path / "model")
    return tmp_path / "model"


def without(folder, *names):
    """Take weights out of a folder."""
    weights = load_file(folder / "model.safetensors")
    for name in names:
        weights.pop(name)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def configured(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(load, folder, match):
    with pytest.raises(DataError, match=match) as caught:
        load(str(folder), device="cpu")
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("architecture", of_table(ARCHITECTURES, "llama", "gemma2", "gpt2", "falcon", "mamba"))
def test_no_whole_model_is_refused_and_any_lost_layer_is(architecture, tmp_path):
    make_model(architecture).save_pretrained(tmp_path, max_shard_size="40KB")
    make_tokenizer(bos=True).save_pretrained(tmp_path)
    load_causal(str(tmp_path), device="cpu")
    shards = {path: load_file(path) for path in tmp_path.glob("*.safetensors")}
    shard, lost = next((path, name) for path, weights in shards.items() for name in weights if ".1." in name)
    del shards[shard][lost]
    save_file(shards[shard], shard, {"format": "pt"})
    refused(load_causal, tmp_path, "lacks weights")


def test_missing_weights_are_named_with_their_number(kind, folder):
    names = sorted(name for name in load_file(folder / "model.safetensors") if ".0." in name)
    without(folder, *names)
    error = refused(LOADERS[kind], folder, f"lacks weights that .* needs: {len(names)} in all, {names[0]}, ")
    assert f" and {len(names) - 3} more" in str(error)


def test_weights_of_another_size_are_named(kind, folder):
    configured(folder, vocab_size=407)
    refused(LOADERS[kind], folder, r"differ in size: .*embed.* of \[400, 32\] for \[407, 32\]")


def test_a_config_of_fewer_layers_is_taken_as_the_users_will(kind, folder):
    configured(folder, num_hidden_layers=1)
    assert LOADERS[kind](str(folder), device="cpu").depth == 1


def test_tied_weights_are_not_missing(tmp_path):
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)).save_pretrained(tmp_path)
    make_tokenizer(bos=True).save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    load_causal(str(tmp_path), device="cpu")


@pytest.mark.parametrize("tied", [False, True])
def test_a_classifier_is_no_language_model(tied, tmp_path):
    """With tied embeddings nothing is missing, and its head is what gives it away."""
    config = LlamaConfig(**SIZES, tie_word_embeddings=tied, pad_token_id=0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    make_tokenizer(bos=True).save_pretrained(tmp_path)
    refused(load_causal, tmp_path, "score.weight; it is a model of another kind" if tied else "lm_head.weight")


def test_an_encoder_needs_no_pooler_that_it_does_not_use(tmp_path):
    config = BertConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    save_as_encoder(tmp_path, BertModel(config))
    whole = load_encoder(str(tmp_path / "encoder"), device="cpu").embeddings(PROMPTS)
    without(tmp_path / "encoder", "pooler.dense.weight", "pooler.dense.bias")
    assert (load_encoder(str(tmp_path / "encoder"), device="cpu").embeddings(PROMPTS) == whole).all()


def test_the_weights_of_every_module_are_needed(tiny_encoder, tmp_path):
    peer = SentenceTransformer(str(tiny_encoder), device="cpu")
    SentenceTransformer(modules=[peer[0], peer[1], Dense(32, 16)], device="cpu").save_pretrained(str(tmp_path))
    weights = load_file(tmp_path / "2_Dense" / "model.safetensors")
    save_file({"linear.weight": weights["linear.weight"]}, tmp_path / "2_Dense" / "model.safetensors")
    refused(load_encoder, tmp_path, "linear.bias")
    torch.save(weights, tmp_path / "2_Dense" / "pytorch_model.bin")
    (tmp_path / "2_Dense" / "model.safetensors").unlink()
    refused(load_encoder, tmp_path, "pytorch_model.bin: pickled weights are not loaded")


@pytest.mark.parametrize("place", ["config.json", "modules.json"])
def test_an_encoder_with_code_of_its_own_is_refused(place, tiny_encoder, tmp_path):
    shutil.copytree(tiny_encoder, tmp_path / "model")
    if place == "config.json":
        configured(tmp_path / "model", auto_map={"AutoModel": "someone/own--modeling.OwnModel"})
    else:
        modules = json.loads((tmp_path / "model" / place).read_text())
        modules[0]["type"] = "own_module.OwnModel"
        (tmp_path / "model" / place).write_text(json.dumps(modules))
    refused(load_encoder, tmp_path / "model", r"code of its own \(.*OwnModel\), which is not run")


def test_a_bare_encoder_is_told_how_to_become_one(tmp_path, monkeypatch):
    config = BertConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    BertModel(config).save_pretrained(tmp_path / "bare")
    make_tokenizer(bos=False).save_pretrained(tmp_path / "bare")
    error = refused(load_causal, tmp_path / "bare", "needs sentence-transformers' modules.json")
    code = str(error).partition("in Python: ")[2].partition(", and give")[0]
    monkeypatch.chdir(tmp_path)
    exec(code)
    assert load_encoder("NEW_FOLDER", device="cpu").embeddings(PROMPTS).shape == (2, 32)


def test_a_git_lfs_pointer_is_said_to_be_one(kind, folder):
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123456\n"
    (folder / "model.safetensors").write_text(pointer)
    refused(LOADERS[kind], folder, r"model.safetensors is a git-lfs pointer .* git lfs pull")


def test_a_file_that_is_cut_off_is_named(kind, folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(LOADERS[kind], folder, "model.safetensors is cut off or damaged")


@pytest.mark.parametrize("method", [{"quant_method": "awq", "bits": 4}, {"quant_method": "gptq", "bits": 4}])
def test_a_missing_package_is_named(method, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model")
    configured(tmp_path / "model", quantization_config={**method, "group_size": 128})
    refused(load_causal, tmp_path / "model", "gptqmodel|optimum")


def test_a_newer_tokenizer_is_said_to_be_one(kind, folder):
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model": {"type": "Next", "vocab": {}}}))
    refused(LOADERS[kind], folder, "cannot be loaded: .*newer tokenizers library than")


def test_whatever_is_raised_is_one_line_with_its_cause(tmp_path):
    with pytest.raises(DataError, match="cannot be loaded: two lines$") as caught, loading(tmp_path):
        raise ZeroDivisionError("two\n lines")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.fixture
def adapter(tiny_model, tmp_path):
    """(a LoRA folder without the model, a copy of its base, the model with the adapter)."""
    shutil.copytree(tiny_model, tmp_path / "base")
    config = LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False)
    torch.manual_seed(1)
    tuned = get_peft_model(load_causal(str(tmp_path / "base"), device="cpu").model, config)
    tuned.save_pretrained(str(tmp_path / "lora"))
    return tmp_path / "lora", tmp_path / "base", tuned


def test_an_adapter_is_scored_on_its_base(adapter):
    folder, base, tuned = adapter
    ours = load_causal(str(folder), device="cpu").label_logprobs(PROMPTS, LABELS)
    whole = base.parent / "merged"
    tuned.merge_and_unload().save_pretrained(whole)
    make_tokenizer(bos=True).save_pretrained(whole)
    merged = load_causal(str(whole), device="cpu").label_logprobs(PROMPTS, LABELS)
    plain = load_causal(str(base), device="cpu").label_logprobs(PROMPTS, LABELS)
    assert abs(ours - merged).max() <= 1e-4 < abs(ours - plain).max()


def test_the_fingerprint_reaches_an_adapters_base(adapter):
    folder, base, _ = adapter
    before = model_fingerprint(folder)
    make_model("llama", seed=5).save_pretrained(base)
    assert model_fingerprint(folder) != before
    without(base, "lm_head.weight")
    refused(load_causal, folder, "base lacks weights that LlamaForCausalLM needs: lm_head.weight")


def test_an_adapter_with_lost_or_idle_weights_is_refused(adapter):
    folder, _, _ = adapter
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    first = next(iter(weights))
    save_file({name: value for name, value in weights.items() if name != first}, path)
    refused(load_causal, folder, "lora lacks weights")
    save_file(weights | {first.replace("layers.0", "layers.7"): weights[first].clone()}, path)
    refused(load_causal, folder, "no place for: .*layers.7")


def test_an_adapter_of_an_adapter_and_one_of_nothing_are_refused(adapter):
    folder, _, _ = adapter
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    for base, match in ((str(folder), "is an adapter itself"), (None, "names no base_model_name_or_path")):
        path.write_text(json.dumps({**config, "base_model_name_or_path": base}))
        with pytest.raises(DataError, match=match):
            model_fingerprint(folder)


def test_weights_in_another_folder_are_refused(tmp_path):
    make_model("llama").save_pretrained(tmp_path / "model", max_shard_size="40KB")
    index = tmp_path / "model" / "model.safetensors.index.json"
    shards = json.loads(index.read_text())
    shards["weight_map"] = {name: f"../{shard}" for name, shard in shards["weight_map"].items()}
    index.write_text(json.dumps(shards))
    with pytest.raises(DataError, match="names weights in another folder"):
        model_fingerprint(locate_model(str(tmp_path / "model")))


def test_an_encoders_adapter_is_checked_with_its_base(tiny_encoder, tmp_path):
    shutil.copytree(tiny_encoder, tmp_path / "base")
    peer = SentenceTransformer(str(tmp_path / "base"), device="cpu")
    peer.add_adapter(LoraConfig(target_modules=["query", "value"], r=2, init_lora_weights=False))
    peer.save_pretrained(str(tmp_path / "lora"))
    ours = load_encoder(str(tmp_path / "lora"), device="cpu")
    assert abs(ours.embeddings(PROMPTS) - peer.encode(PROMPTS, normalize_embeddings=True)).max() <= 1e-5
    before = model_fingerprint(tmp_path / "lora")
    without(tmp_path / "base", "embeddings.position_embeddings.weight")
    assert model_fingerprint(tmp_path / "lora") != before
    refused(load_encoder, tmp_path / "lora", "base lacks weights .*position_embeddings")
