"""A GGUF file, as transformers reads it, written as a model's folder: float32 safetensors, config and tokenizer.

transformers takes from a file its weights, sizes and vocabulary. It does not take how positions are scaled, nor how
some vocabularies cut a text before merging: both would change answers without a word. Llama 3's scaling is recovered
from the factors in the file and checked against them; any other is refused. Vocabularies that set digits apart get back
what does so. Nothing beside the file is read.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations.gguf import read_gguf_metadata
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from personalization.backbones.loading import line_of, quietly, refuse_unloaded
from personalization.errors import DataError, UnavailableError

log = logging.getLogger(__name__)

INSTEAD = "give the model as a folder with safetensors"
FACTORS = "rope_freqs.weight"
"""The tensor by whose values a file of the Llama 3 family divides the frequencies of its positions."""
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What all models of that family share; the factor is the file's largest."""
DIGITS_APART = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
"""Vocabularies (`tokenizer.ggml.pre`) that are cut as GPT-2's is, after each digit was set apart."""
AS_GPT2 = ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "roberta-bpe")
PROBES = ("a\n\n1. b", "  two  12\t\t345", "Grüße aus Köln", "東京は日本の首都です", "it's 3.5 %", "")
"""Texts whose tokens must be the same from the file and from the folder."""


def convert(file: Path, folder: Path) -> None:
    """Write what a GGUF file holds into an empty folder; DataError where it cannot be read as it is meant."""
    if find_spec("gguf") is None:
        raise UnavailableError(f"the package gguf, which reads {file}, is not installed; pip install gguf")
    with (
        quietly(lambda error: f"GGUF file {file} cannot be read: {line_of(error)}; {INSTEAD}"),
        tempfile.TemporaryDirectory(dir=folder) as alone,
    ):
        (Path(alone) / file.name).symlink_to(file.resolve())
        metadata, tensors = read_gguf_metadata(str(file))
        tokenizer = _tokenizer(file, Path(alone), metadata)
        model = _model(file, Path(alone), metadata, tensors)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _refuse_changed(file, tokenizer, folder)


def _model(file: Path, alone: Path, metadata: Mapping[str, Any], tensors: tuple[str, ...]) -> PreTrainedModel:
    """The model of the only file in a folder, all its weights dequantised."""
    config = AutoConfig.from_pretrained(alone, gguf_file=file.name, trust_remote_code=False)
    _scale_positions(file, config, metadata, tensors)
    with contextlib.redirect_stderr(io.StringIO()):
        model, info = AutoModelForCausalLM.from_pretrained(
            alone,
            config=config,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    refuse_unloaded(file, model, info)
    return model


def _scale_positions(
    file: Path, config: PretrainedConfig, metadata: Mapping[str, Any], tensors: tuple[str, ...]
) -> None:
    """Give a config the scaling of positions that the file has and transformers did not read."""
    how = metadata.get(f"{metadata['general.architecture']}.rope.scaling.type", "none")
    named = [name for name in tensors if name.startswith(("rope_freqs", "rope_factors"))]
    rope = getattr(config, "rope_parameters", None) or {}
    if (how == "none" and not named) or rope.get("rope_type", "default") != "default":
        return
    if named == [FACTORS] and how == "none":
        factors = _tensor(file, FACTORS)
        base = 1 / ROPE_INIT_FUNCTIONS["llama3"](_scaled(config, rope, 1.0))[0]
        scaled = _scaled(config, rope, float(factors.max()))
        if torch.allclose(1 / ROPE_INIT_FUNCTIONS["llama3"](scaled)[0], base * factors, rtol=1e-4):
            config.rope_parameters = scaled.rope_parameters
            return
    raise DataError(
        f"GGUF file {file} scales its positions ({', '.join(named) or how}) in a way that is not read from GGUF; "
        f"{INSTEAD}"
    )


def _scaled(config: PretrainedConfig, rope: Mapping[str, Any], factor: float) -> PretrainedConfig:
    """A copy of a config with Llama 3's scaling by a factor."""
    return type(config).from_dict(
        {**config.to_dict(), "rope_parameters": {**rope, **LLAMA3, "rope_type": "llama3", "factor": factor}}
    )


def _tensor(file: Path, name: str) -> torch.Tensor:
    """One unquantised tensor of a file."""
    from gguf import GGUFReader

    return torch.tensor(next(tensor.data for tensor in GGUFReader(file).tensors if tensor.name == name))


def _tokenizer(file: Path, alone: Path, metadata: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer of the only file in a folder, which cuts texts as its vocabulary was learned."""
    tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file=file.name, trust_remote_code=False)
    backend, learned = tokenizer.backend_tokenizer, metadata.get("tokenizer.ggml.pre")
    if metadata.get("tokenizer.ggml.model") != "gpt2" or not isinstance(
        backend.pre_tokenizer, pre_tokenizers.ByteLevel
    ):
        return tokenizer
    if learned in DIGITS_APART:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif learned not in AS_GPT2:
        log.warning(
            "%s cuts its texts as %r says, which is not known here: they are cut as GPT-2's, and may fare worse",
            file,
            learned,
        )
    return tokenizer


def _refuse_changed(file: Path, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """DataError where a tokenizer is another one after it was saved."""
    saved = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokens = [[one(list(PROBES))["input_ids"], one.chat_template] for one in (tokenizer, saved)]
    if tokens[0] != tokens[1]:
        raise DataError(f"GGUF file {file}: its tokenizer is another one when it is saved and read again; {INSTEAD}")
