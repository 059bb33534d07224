"""Prefix tuning (Li and Liang 2021, arXiv:2101.00190): learned keys and values in front of every row, at every layer.

One prefix of P virtual tokens for each group, on top of adapters that stay frozen (a LoRA of all users), which answer
for what users have in common. Prompts take positions from P on, as in PEFT. A prefix starts as the keys and values that
the model itself has for the beginning of a prompt. It reaches every layer, so nothing below it can be kept between
steps: a step costs a full pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from personalization.files import write_atomic
from personalization.methods.adapters.lora import GroupedLora, save_config
from personalization.scoring.packed import TrunkLayer


class GroupedPrefix:
    """Prefixes of all groups: float32 [G, P, 2 L, H, D], key and value of a layer side by side, H key-value heads."""

    def __init__(self, below: GroupedLora, values: Tensor) -> None:
        self.model: PreTrainedModel = below.model
        self.below = below
        for parameter in below.parameters:
            parameter.requires_grad_(False)
        self.values = values.detach().clone().requires_grad_()

    @classmethod
    def begun(cls, below: GroupedLora, tokens: Sequence[int], groups: int) -> GroupedPrefix:
        """Prefixes that are what the model, with `below`, has of these tokens, the same for every group."""
        ids, cache = torch.tensor([tokens], device=below.model.device), DynamicCache()
        with torch.inference_mode(), below.applied(torch.zeros(1, dtype=torch.int64)):
            below.model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
        sides = [side[0] for layer in cache.layers for side in (layer.keys, layer.values)]
        one = torch.stack(sides).float().permute(2, 0, 1, 3).clone()
        return cls(below, one.expand(groups, *one.shape))

    @property
    def parameters(self) -> list[Tensor]:
        """Every tensor that is trained."""
        return [self.values]

    @property
    def sides(self) -> tuple[list[Tensor], list[Tensor]]:
        """All of it learns at the faster of two rates."""
        return [], [self.values]

    @property
    def trainable(self) -> int:
        """Number of trained parameters."""
        return self.values.numel()

    @contextmanager
    def applied(self, rows: Tensor, dropout: float = 0.0) -> Iterator[Cache]:  # noqa: ARG002
        """The keys and values to run rows of groups `rows` [B] behind. Every row needs a group."""
        if bool((rows < 0).any()):
            raise ValueError("a prefix takes rows of its groups alone")
        shared = self.values[rows.to(self.values.device)].to(self.model.dtype).permute(2, 0, 3, 1, 4)
        with self.below.applied(torch.zeros_like(rows)):
            yield Cache(layers=[TrunkLayer(shared[at], shared[at + 1]) for at in range(0, len(shared), 2)])

    def state(self) -> dict[str, Tensor]:
        """Everything by name, detached, on the CPU."""
        return {"prefix": self.values.detach().cpu().clone()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        with torch.no_grad():
            self.values.copy_(state["prefix"])

    def save(self, folder: Path, group: int, base: str) -> None:
        """One group's prefix as PEFT saves it; it is meant for the model with `below` merged into it."""
        from peft import PrefixTuningConfig

        tokens, sides, heads, size = self.values.shape[1:]
        config = PrefixTuningConfig(
            task_type="CAUSAL_LM", base_model_name_or_path=base, inference_mode=True, num_virtual_tokens=tokens,
            num_layers=sides // 2, num_attention_heads=heads, token_dim=heads * size, num_transformer_submodules=1,
        )  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        save_config(config, folder)
        flat = self.values[group].detach().cpu().reshape(tokens, -1).contiguous()
        write_atomic(folder / "adapter_model.safetensors", save({"prompt_embeddings": flat}, metadata={"format": "pt"}))


Adapters = GroupedLora | GroupedPrefix
"""What can be trained, and applied to rows of groups."""


def load_prefix(below: GroupedLora, folders: Sequence[Path]) -> GroupedPrefix:
    """The prefixes of these folders, one a group, all of one shape."""
    from peft import PrefixTuningConfig

    config = PrefixTuningConfig.from_pretrained(str(folders[0]))
    shape = (config.num_virtual_tokens, 2 * config.num_layers, config.num_attention_heads, -1)
    found = [load_file(folder / "adapter_model.safetensors")["prompt_embeddings"].view(*shape) for folder in folders]
    return GroupedPrefix(below, torch.stack(found).to(below.model.device))


def first_tokens(prompt: Sequence[int], count: int) -> list[int]:
    """The first tokens of a prompt, again from its beginning where it is shorter."""
    return [int(token) for token in np.resize(np.asarray(prompt), count)]
