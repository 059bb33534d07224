"""Tiny random models, a tokenizer trained here, and random evaluations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MptConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto import AutoModelForCausalLM

from personalization.data.demo.world import make_world
from personalization.data.known import known_items
from personalization.data.records import Dataset
from personalization.evaluation import Evaluation
from personalization.scoring.products import fast_products

SHARES = {"tune": 0.5, "select": 0.2, "confirm": 0.3}
"""Of small worlds: their trials need users, and nothing is claimed of their confirm users."""
SIZES = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
WINDOW = {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8}
FALCON = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
ARCHITECTURES = {
    "llama": lambda: LlamaConfig(**SIZES, num_key_value_heads=2),
    "qwen2": lambda: Qwen2Config(**SIZES, num_key_value_heads=2),
    "qwen3": lambda: Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8),
    "mistral": lambda: MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=24),
    "gemma": lambda: GemmaConfig(**SIZES, num_key_value_heads=1, head_dim=8),
    "gemma2": lambda: Gemma2Config(**SIZES, **WINDOW, num_key_value_heads=2, query_pre_attn_scalar=8),
    "gemma3": lambda: Gemma3TextConfig(**SIZES, **WINDOW, num_key_value_heads=2, query_pre_attn_scalar=8),
    "gpt2": lambda: GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=4, n_positions=256),
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES),
    "phi": lambda: PhiConfig(**SIZES),
    "opt": lambda: OPTConfig(
        vocab_size=400, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, word_embed_proj_dim=16,
    ),
    "falcon": lambda: FalconConfig(**FALCON, max_position_embeddings=256),
    "falcon-alibi": lambda: FalconConfig(**FALCON, max_position_embeddings=256, alibi=True, multi_query=False),
    "bloom": lambda: BloomConfig(vocab_size=400, hidden_size=32, n_layer=2, n_head=4),
    "mpt": lambda: MptConfig(vocab_size=400, d_model=32, n_layers=2, n_heads=4, max_seq_len=256),
    "gpt_neo": lambda: GPTNeoConfig(
        vocab_size=400, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=48, window_size=24,
        attention_types=[[["global", "local"], 1]], max_position_embeddings=256,
    ),
    "mamba": lambda: MambaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=2, state_size=4),
}  # fmt: skip


@cache
def trained_tokenizer() -> str:
    """A byte-level BPE trained on a few sentences, as JSON."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([q.text for q in make_world(0, 20).dataset.questions], trainer)
    return tokenizer.to_str()


def of_table(table: Iterable[Any], *fast: Any) -> list[Any]:
    """Every entry of a table for `parametrize`; those that are not of the gate's kinds are slow."""
    return [entry if entry in fast else pytest.param(*_values(entry), marks=pytest.mark.slow) for entry in table]


def _values(entry: Any) -> tuple[Any, ...]:
    return entry if isinstance(entry, tuple) else (entry,)


def make_tokenizer(bos: bool) -> PreTrainedTokenizerFast:
    """The tokenizer of the tiny models; with `bos`, "<s>" begins what it encodes."""
    tokenizer = Tokenizer.from_str(trained_tokenizer())
    if bos:
        start = ("<s>", tokenizer.token_to_id("<s>"))
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[start])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=256
    )


def make_model(architecture: str, seed: int = 0, times: float = 6.0) -> torch.nn.Module:
    """A random model with weights large enough to make confident, varied predictions."""
    torch.manual_seed(seed)
    config = ARCHITECTURES[architecture]()
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, 1, 2
    return enlarged(AutoModelForCausalLM.from_config(config).eval(), times)


def enlarged(model: torch.nn.Module, times: float = 6.0) -> torch.nn.Module:
    """The model with larger weights, so that a wrong mask or position shows."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(times if "embed" not in name and "wte" not in name else 3.0)
    return model


def one_batch(backbone: Any, texts: list[str]) -> torch.Tensor:
    """An encoder's embeddings [B, d] of texts in one forward pass, row i being text i."""
    with torch.inference_mode(), fast_products(backbone.model.device.type):
        embedded = backbone.encoder(backbone.features(texts))["sentence_embedding"]
        return torch.nn.functional.normalize(embedded.float(), dim=-1)


def short_world(seed: int, users: int, questions_per_user: int, items: int = 6) -> Dataset:
    """A planted world whose users have their newest items alone: what is trained on it costs little."""
    dataset = make_world(seed, users, questions_per_user).dataset
    short = tuple(replace(q, history=known_items(dataset.task, q)[-items:]) for q in dataset.questions)
    return replace(dataset, questions=short)


def random_evaluation(seed: int, n: int = 60, users: int = 12, k: int = 5, skill: float = 1.0) -> Evaluation:
    """Random predictions that favour the gold label by `skill` nats; the same users and golds for every seed."""
    fixed = np.random.default_rng(99)
    gold = fixed.integers(0, k, n)
    user = fixed.integers(0, users, n)
    scores = np.random.default_rng(seed).normal(size=(n, k))
    scores[np.arange(n), gold] += skill
    log_probs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return Evaluation(
        tuple(f"label {i}" for i in range(k)),
        tuple(f"q{i}" for i in range(n)),
        tuple(f"u{u}" for u in user),
        gold,
        log_probs,
        ["user"] * n,
    )


def save_encoder(folder: Path, window: int = 64) -> None:
    """A random sentence encoder, its layers' weights large, saved as sentence-transformers saves one."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48
    )
    model = BertModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    save_as_encoder(folder, model, window)


def save_as_encoder(folder: Path, model: PreTrainedModel, window: int = 64) -> None:
    """A model of width 32 under a mean over tokens, saved as sentence-transformers saves one: folder/encoder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    model.save_pretrained(folder / "plain")
    make_tokenizer(bos=False).save_pretrained(folder / "plain")
    transformer = Transformer(str(folder / "plain"), max_seq_length=window)
    pooling = Pooling(32, pooling_mode="mean")
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save_pretrained(str(folder / "encoder"))
