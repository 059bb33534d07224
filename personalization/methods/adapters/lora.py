"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), one for each group, side by side on one frozen model.

    y = W x + b + (alpha / r) B_g A_g x,    A [G, r, in], B [G, out, r], g the group of the batch's row

Hooks add the second part, so the model's own weights are never touched and a model outside `applied` is what it was,
bit for bit. All groups train in one pass over the frozen model. Adapters are saved one folder a group in PEFT's format,
and `PeftModel.from_pretrained` loads them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.pytorch_utils import Conv1D

from personalization.errors import UnavailableError
from personalization.files import write_atomic


def adapted_modules(model: PreTrainedModel, layers: Iterable[nn.Module], targets: str) -> tuple[str, ...]:
    """Paths of the linear maps of these layers of a model: those of the attention, of the rest, or all."""
    names = {id(module): name for name, module in model.named_modules()}
    found = []
    for layer in layers:
        for name, module in layer.named_modules():
            attention = "attn" in name.lower() or "attention" in name.lower()
            if isinstance(module, nn.Linear | Conv1D) and (targets == "all" or attention == (targets == "attention")):
                found.append(names[id(module)])
    return tuple(found)


@dataclass(frozen=True)
class LoraShape:
    """What all groups' adapters have in common. `modules`: paths in the model."""

    modules: tuple[str, ...]
    rank: int
    alpha: float
    groups: int


class GroupedLora:
    """Adapters of all groups. `a`, `b`: path -> float32 [G, r, in] and [G, out, r]."""

    def __init__(self, model: PreTrainedModel, shape: LoraShape, seed: int = 0) -> None:
        self.model, self.shape = model, shape
        random = torch.Generator().manual_seed(seed)
        self.a: dict[str, Tensor] = {}
        self.b: dict[str, Tensor] = {}
        for path in shape.modules:
            weight = model.get_submodule(path).weight
            inside, outside = _sizes(model.get_submodule(path))
            bound = inside**-0.5  # kaiming_uniform with a = sqrt(5), as in PEFT
            a = torch.empty(1, shape.rank, inside).uniform_(-bound, bound, generator=random)
            self.a[path] = a.repeat(shape.groups, 1, 1).to(weight.device).requires_grad_()
            self.b[path] = torch.zeros(shape.groups, outside, shape.rank, device=weight.device).requires_grad_()

    @property
    def parameters(self) -> list[Tensor]:
        """Every tensor that is trained."""
        return [*self.a.values(), *self.b.values()]

    @property
    def sides(self) -> tuple[list[Tensor], list[Tensor]]:
        """All A and all B: they may learn at different rates."""
        return list(self.a.values()), list(self.b.values())

    @property
    def trainable(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters)

    @contextmanager
    def applied(self, rows: Tensor, dropout: float = 0.0) -> Iterator[Cache | None]:
        """Run the model with the adapter of group `rows` [B] in each row; -1 leaves a row as it is. No prefix."""
        scale = self.shape.alpha / self.shape.rank
        handles = []
        try:
            for path in self.shape.modules:
                hook = _adder(path, self.a[path], self.b[path], rows, scale, dropout)
                handles.append(self.model.get_submodule(path).register_forward_hook(hook))
            yield None
        finally:
            for handle in handles:
                handle.remove()

    def state(self) -> dict[str, Tensor]:
        """Everything by name, detached, on the CPU."""
        named = {f"{side}.{path}": t for side, part in (("a", self.a), ("b", self.b)) for path, t in part.items()}
        return {name: tensor.detach().cpu().clone() for name, tensor in named.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        with torch.no_grad():
            for side, part in (("a", self.a), ("b", self.b)):
                for path, tensor in part.items():
                    tensor.copy_(state[f"{side}.{path}"])

    def save(self, folder: Path, group: int, base: str) -> None:
        """One group's adapter as PEFT saves it: adapter_config.json and adapter_model.safetensors."""
        from peft import LoraConfig

        conv = any(isinstance(self.model.get_submodule(path), Conv1D) for path in self.shape.modules)
        config = LoraConfig(
            task_type="FEATURE_EXTRACTION" if self.model.get_output_embeddings() is None else "CAUSAL_LM",
            base_model_name_or_path=base,
            r=self.shape.rank,
            lora_alpha=self.shape.alpha,  # type: ignore[arg-type]
            target_modules=list(self.shape.modules),
            fan_in_fan_out=conv,
            inference_mode=True,
        )
        tensors = {}
        for path in self.shape.modules:
            prefix = f"base_model.model.{path}"
            tensors[f"{prefix}.lora_A.weight"] = self.a[path][group].detach().cpu().contiguous()
            tensors[f"{prefix}.lora_B.weight"] = self.b[path][group].detach().cpu().contiguous()
        folder.mkdir(parents=True, exist_ok=True)
        save_config(config, folder)
        write_atomic(folder / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))


def save_config(config: Any, folder: Path) -> None:
    """A PEFT config, the same bytes in every process: PEFT writes the modules in the order of a set."""
    config.save_pretrained(str(folder))
    path = folder / "adapter_config.json"
    written = json.loads(path.read_text())
    if isinstance(written.get("target_modules"), list):
        written["target_modules"].sort()
    write_atomic(path, json.dumps(written, indent=2, sort_keys=True) + "\n")


def load_lora(model: PreTrainedModel, folders: Sequence[Path]) -> GroupedLora:
    """The adapters of these folders, one a group, all of one shape."""
    from peft import LoraConfig

    config: Any = LoraConfig.from_pretrained(str(folders[0]))
    states = [load_file(folder / "adapter_model.safetensors") for folder in folders]
    prefix, suffix = "base_model.model.", ".lora_A.weight"
    modules = tuple(sorted(name[len(prefix) : -len(suffix)] for name in states[0] if name.endswith(suffix)))
    lora = GroupedLora(model, LoraShape(modules, config.r, config.lora_alpha, len(folders)))
    with torch.no_grad():
        for path in modules:
            for side, part in (("A", lora.a), ("B", lora.b)):
                part[path].copy_(torch.stack([state[f"{prefix}{path}.lora_{side}.weight"] for state in states]))
    return lora


def bytes_of_one(model: PreTrainedModel, modules: Sequence[str], rank: int) -> int:
    """Of the adapter of one group."""
    return 4 * rank * sum(sum(_sizes(model.get_submodule(path))) for path in modules)


def _sizes(module: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a linear map."""
    rows, columns = module.weight.shape
    return (rows, columns) if isinstance(module, Conv1D) else (columns, rows)


def _adder(path: str, a: Tensor, b: Tensor, rows: Tensor, scale: float, dropout: float) -> Any:
    one = len(a) == 1 and bool((rows == 0).all())
    on = (rows >= 0).to(a.dtype)[:, None, None]
    groups = rows.clamp(min=0)

    def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0].to(a.dtype)
        if not one and (len(x) % len(rows) or (x.ndim > 2 and len(x) != len(rows))):
            raise UnavailableError(
                f"{path} takes {len(x)} rows from a batch of {len(rows)}, so that it cannot have an adapter for each "
                "user; give other targets"
            )
        if dropout:
            x = nn.functional.dropout(x, dropout)
        flat = x.ndim == 2  # OPT joins rows and places
        x = x.view(len(rows), -1, x.shape[-1]) if flat else x
        if one:
            low = nn.functional.linear(x, a[0]).flatten(0, -2)[None]
        else:
            low = on * torch.bmm(x, a[groups].transpose(1, 2))
        low, up = scale * low, (b if one else b[groups]).transpose(1, 2)
        if output.dtype != a.dtype:
            return output + torch.bmm(low, up).to(output.dtype).view_as(output)
        return torch.baddbmm(output.reshape(*low.shape[:2], -1), low, up).view_as(output)

    return add
