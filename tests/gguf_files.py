"""Tiny GGUF files of models and tokenizers that were never one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from tests.tiny import SIZES, enlarged, make_tokenizer

TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>{% endfor %}{{ 'assistant:' }}"
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6

Told = Callable[[gguf.GGUFWriter], None]


def make_llama(**changes: object) -> LlamaForCausalLM:
    """A random Llama of the tiny vocabulary."""
    torch.manual_seed(0)
    return enlarged(LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_key_value_heads": 2, **changes})).eval())


def write_gguf(path: Path, model: LlamaForCausalLM, told: Told, without: str = "") -> Path:
    """A model as llama.cpp writes it, with the vocabulary that `told` adds and without one tensor."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    told(writer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == without or (config.tie_word_embeddings and name == "lm_head.weight"):
            continue
        values = weight.numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values = _interleaved(values, config.head_dim)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _interleaved(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of each head in the order in which llama.cpp turns pairs of them."""
    return weight.reshape(-1, 2, head_dim // 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def byte_level(bos: bool = False, learned: str = "gpt-2", template: str | None = TEMPLATE) -> Told:
    """The vocabulary of the tiny models."""

    def told(writer: gguf.GGUFWriter) -> None:
        tokenizer = make_tokenizer(bos=False)
        tokens = _by_id(tokenizer)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(learned)
        writer.add_token_list(tokens)
        writer.add_token_types([CONTROL if token in ("<pad>", "<s>", "</s>") else NORMAL for token in tokens])
        state = tokenizer.backend_tokenizer.model.__getstate__().decode()
        writer.add_token_merges(_merges(state))
        _ends(writer, bos, template)

    return told


def sentencepiece(bos: bool | None) -> Told:
    """A vocabulary as sentencepiece makes one; `bos` None: the file does not say whether one is added."""

    def told(writer: gguf.GGUFWriter) -> None:
        pieces = ["▁a", "▁shy", "▁ba", "ker", "▁", "sh", "hy", "ba", "ke", "er", "shy", *"abehkrsyu"]
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
        tokens += [f"<unused{n}>" for n in range(SIZES["vocab_size"] - len(tokens))]
        kinds = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_scores([0.0] * 259 + [-float(n) for n in range(len(tokens) - 259)])
        writer.add_token_types(kinds + [NORMAL] * (len(tokens) - 259))
        writer.add_unk_token_id(0)
        _ends(writer, bos, None)

    return told


def _ends(writer: gguf.GGUFWriter, bos: bool | None, template: str | None) -> None:
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if bos is not None:
        writer.add_add_bos_token(bos)
    if template is not None:
        writer.add_chat_template(template)


def _by_id(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def _merges(state: str) -> list[str]:
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in json.loads(state)["merges"]]
