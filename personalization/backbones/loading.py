"""Loading with other people's code: what it raises is the model's fault, and what it draws at random is refused."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from personalization.backbones.location import adapter_base, model_files, module_folders, read_json
from personalization.errors import ChamtuneError, DataError

POINTER = b"version https://git-lfs"
"""How a file begins that stands for one kept by git-lfs."""
PICKLED = ("pytorch_model.bin", "adapter_model.bin")
SHOWN = 3
"""Weights that a message names."""
SPEAKING = ("CausalLM", "LMHead", "ConditionalGeneration")
"""What the names of classes with a language model's head have in them."""
OWN_MODULES = "sentence_transformers."
"""Where the modules of an encoder must come from."""


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Load a folder's model inside. Whatever is raised becomes a DataError of one line.

    A file that is a git-lfs pointer, cut off, damaged or pickled is named before anything is loaded.
    """
    _check_files(folder)
    with quietly(lambda error: f"model folder {folder} cannot be loaded: {_odd_tokenizer(folder) or line_of(error)}"):
        yield


@contextmanager
def quietly(said: Callable[[Exception], str]) -> Iterator[None]:
    """Load inside. What is raised becomes a DataError that says `said`, and transformers shows no tables of weights."""
    shown = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except ChamtuneError:
        raise
    except Exception as error:
        raise DataError(said(error)) from error
    finally:
        transformers_logging.set_verbosity(shown)


def line_of(error: Exception) -> str:
    """What an error says, in one line."""
    return textwrap.shorten(str(error), 400, placeholder=" ...") or type(error).__name__


def _odd_tokenizer(folder: Path) -> str | None:
    """What is wrong with a folder's tokenizer.json, or None; loaders that look for other files hide it."""
    for path in folder.rglob("tokenizer.json"):
        try:
            Tokenizer.from_file(str(path))
        except Exception as error:
            return (
                f"{path.name}: {line_of(error)}; it may be of a newer tokenizers library than {version('tokenizers')}"
            )
    return None


def _check_files(folder: Path) -> None:
    """DataError naming the first file that cannot be what it should be."""
    for path in model_files(folder):
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise DataError(
                    f"{path} is a git-lfs pointer and not the file itself; fetch it: git lfs pull, in {folder}"
                )
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="pt"):
                    pass
            except SafetensorError as error:
                raise DataError(f"{path} is cut off or damaged ({line_of(error)}); fetch it again") from error
    for name in PICKLED:
        for path in folder.rglob(name):
            if not any(path.parent.glob("*.safetensors")):
                raise DataError(f"{path}: pickled weights are not loaded; convert them to safetensors")


def refuse_unloaded(place: Path, model: PreTrainedModel, info: Mapping[str, Any], unused: bool = False) -> None:
    """DataError naming the weights that a model has and its checkpoint lacks, or has in another size.

    `info` is transformers' loading info, where tied weights and buffers that are made anew do not count as missing.
    `unused`: refuse a checkpoint with weights that this model has no place for, too.
    """
    name, whose = type(model).__name__, f"{'model folder' if place.is_dir() else 'GGUF file'} {place}"
    sizes = [f"{key} of {list(has)} for {list(wants)}" for key, has, wants in sorted(info["mismatched_keys"])]
    if sizes:
        raise DataError(f"{whose}: the config and the weights differ in size: {_first(sizes)}")
    if missing := sorted(info["missing_keys"]):
        raise DataError(
            f"{whose} lacks weights that {name} needs: {_first(missing)}; "
            "they would be drawn at random. Give one that holds the whole model"
        )
    if unused and info["unexpected_keys"]:
        raise DataError(
            f"{whose} holds weights that {name} has no place for: "
            f"{_first(sorted(info['unexpected_keys']))}; it is a model of another kind"
        )


def _first(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} in all, {', '.join(names[:SHOWN])}{more}" if more else ", ".join(names)


def of_another_head(model: PreTrainedModel, info: Mapping[str, Any]) -> bool:
    """Whether the checkpoint is of a class without a language model's head and brings another one: a classifier's."""
    inside = {name for name, _ in model.named_children()}
    outside = any(key.split(".")[0] not in inside for key in info["unexpected_keys"])
    return outside and bool(model.config.architectures) and not _speaks(model.config)


def _speaks(config: PretrainedConfig) -> bool:
    """Whether the class that a config names has a language model's head."""
    return any(head in name for name in config.architectures or [] for head in SPEAKING)


def refuse_own_code(folder: Path) -> None:
    """DataError for an encoder that brings code: without it, its weights would be read into another model."""
    own = [e["type"] for e in read_json(folder / "modules.json") if not e["type"].startswith(OWN_MODULES)]
    for part in module_folders(folder):
        config = (adapter_base(part) or part) / "config.json"
        if config.is_file():
            own += (read_json(config).get("auto_map") or {}).values()
    if own:
        raise DataError(
            f"encoder folder {folder} names code of its own ({', '.join(dict.fromkeys(map(str, own)))}), "
            "which is not run; give an encoder that needs none"
        )


def refuse_bare_encoder(folder: Path, config: PretrainedConfig) -> None:
    """DataError for a model that reads both ways and lacks the file that makes it a sentence encoder."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or getattr(config, "is_decoder", False):
        return
    if not _speaks(config):
        raise DataError(
            f"model folder {folder} is a {config.model_type} encoder, which needs sentence-transformers' modules.json; "
            "write one in Python: from sentence_transformers import SentenceTransformer; "
            f"SentenceTransformer({str(folder)!r}).save('NEW_FOLDER'), and give NEW_FOLDER (mean pooling)"
        )
