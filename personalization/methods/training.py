"""Training adapters on labelled items, above frozen layers.

    loss = label * CE(softmax_y score, gold) + token * NLL of the gold continuation, a token
         + margin * mean max(0, 1 - (score_gold - best wrong score))
         + diversity * max(0, H(gold of the batch) - H(mean prediction of the batch))
         + anchor * sum ||adapter - where it began||^2

with scores log p(label's continuation | prompt). AdamW (Loshchilov & Hutter 2019), linear warm-up and cosine decay, the
gradient's norm clipped. After each epoch the held-out items are measured; the best epoch by their loss is kept, and
`patience` epochs without a better one end the training. A checkpoint after each epoch holds the adapters, the optimiser
and the history; the order of batches and the dropout depend on seed and epoch alone, so a training that was killed goes
on to the same bits on a CPU.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from personalization.errors import DataError
from personalization.files import write_atomic
from personalization.methods.adapted_rows import AdaptedRows
from personalization.methods.lora import GroupedLora
from personalization.metrics import entropy_bits, label_counts

VERSION = 1
"""Of the recipe: a change that changes results raises it."""
WARM_UP = 0.1
"""Share of the steps over which the learning rate rises."""


@dataclass(frozen=True)
class Recipe:
    """How adapters are trained. Losses by weight; `clip` bounds the gradient's norm."""

    epochs: int = 4
    lr: float = 2e-3
    weight_decay: float = 0.01
    dropout: float = 0.0
    clip: float = 1.0
    label: float = 1.0
    token: float = 0.0
    margin: float = 0.0
    diversity: float = 0.0
    anchor: float = 0.0
    patience: int = 2
    seed: int = 0


Record = dict[str, float]
"""What one epoch gave."""
Watch = Callable[[NDArray[np.float32]], None]
"""Called after each epoch with the scores of the held-out items [m, K]; may raise to end the training."""


@dataclass
class Items:
    """Labelled prompts: `rows` and the gold labels [n] of their prompts."""

    rows: AdaptedRows
    gold: NDArray[np.int64]


def losses(scores: Tensor, gold: Tensor, lengths: Tensor, recipe: Recipe) -> dict[str, Tensor]:
    """Weighted parts of the loss of scores [b, K]; `lengths` [K]: tokens of each label."""
    chosen = scores.gather(1, gold[:, None])[:, 0]
    found: dict[str, Tensor] = {}
    if recipe.label:
        found["label"] = recipe.label * torch.nn.functional.cross_entropy(scores, gold)
    if recipe.token:
        found["token"] = -recipe.token * chosen.sum() / lengths[gold].sum()
    if recipe.margin:
        wrong = scores.scatter(1, gold[:, None], -torch.inf).amax(dim=1)
        found["margin"] = recipe.margin * (1 - (chosen - wrong)).clamp(min=0).mean()
    if recipe.diversity:
        mean = scores.softmax(dim=1).mean(dim=0)
        share = torch.bincount(gold, minlength=scores.shape[1]) / len(gold)
        wanted = -(share * share.clamp(min=1e-12).log()).sum()
        found["diversity"] = recipe.diversity * (wanted + (mean * mean.clamp(min=1e-12).log()).sum()).clamp(min=0)
    return found


def train(
    train_sets: Sequence[Items],
    held_out: Items | None,
    lora: GroupedLora,
    recipe: Recipe,
    checkpoint: Path,
    watch: Watch | None = None,
) -> list[Record]:
    """Train the adapters in place, to the best epoch; the records of all epochs.

    Epoch e takes `train_sets[e % len]`: views of the same items. `checkpoint` is where a killed training goes on from.
    Raises DataError where a loss is not finite.
    """
    optimiser = torch.optim.AdamW(lora.parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    steps = sum(len(train_sets[epoch % len(train_sets)].rows.rows) for epoch in range(recipe.epochs))
    began = [parameter.detach().clone() for parameter in lora.parameters]
    records: list[Record] = []
    best = lora.state()
    if checkpoint.exists():
        records, best, began = _resume(checkpoint, lora, optimiser, recipe)
    with _frozen(lora.model):
        while len(records) < recipe.epochs and not _over(records, recipe):
            items = train_sets[len(records) % len(train_sets)]
            done = sum(len(train_sets[epoch % len(train_sets)].rows.rows) for epoch in range(len(records)))
            record = _epoch(items, lora, optimiser, recipe, began, len(records), (done, steps))
            scores = None if held_out is None else held_out.rows.table(lora)
            record |= {} if scores is None or held_out is None else measured(scores, held_out.gold)
            records.append(record)
            if _best(records) == len(records) - 1:
                best = lora.state()
            _save(checkpoint, lora, optimiser, best, began, records, recipe)
            if watch is not None and scores is not None:
                watch(scores)
    lora.load(best)
    return records


def measured(scores: NDArray[np.float32], gold: NDArray[np.int64]) -> Record:
    """Loss, accuracy, entropy in bits and largest share of the predictions of scores [m, K]."""
    log_probs = torch.from_numpy(scores).log_softmax(dim=1).numpy()
    predicted, rows = log_probs.argmax(axis=1), np.arange(len(gold))
    counts = label_counts(predicted, log_probs.shape[1])
    return {
        "held_out_loss": float(-log_probs[rows, gold].mean()),
        "held_out_accuracy": float((predicted == gold).mean()),
        "held_out_entropy": entropy_bits(counts),
        "held_out_top1_share": float(counts.max() / counts.sum()),
    }


def flags(records: Sequence[Record]) -> list[str]:
    """What looks wrong in a training, each with its epoch and what usually helps."""
    said = []
    for epoch, record in enumerate(records, start=1):
        if record.get("held_out_top1_share", 0.0) > 0.9:
            said.append(
                f"epoch {epoch}: one label takes {record['held_out_top1_share']:.0%} of the predictions; "
                "raise diversity, or lower lr"
            )
            break
    for epoch, (before, record) in enumerate(pairwise(records), start=2):
        if record.get("held_out_loss", 0.0) > before.get("held_out_loss", 0.0) + 0.05:
            said.append(
                f"epoch {epoch}: the held-out loss rises from {before['held_out_loss']:.3f} to "
                f"{record['held_out_loss']:.3f}; take fewer epochs, a smaller rank or lr, or more dropout"
            )
            break
    for epoch, record in enumerate(records, start=1):
        parts = {name.removeprefix("loss_"): value for name, value in record.items() if name.startswith("loss_")}
        main = parts.get("label", 0.0) + parts.get("token", 0.0)
        heavy = [name for name, value in parts.items() if name not in ("label", "token") and value > 2 * main > 0]
        if heavy:
            said.append(f"epoch {epoch}: the loss is mostly {heavy[0]}; lower its weight")
            break
    if records and records[-1].get("held_out_loss", 0.0) > 1.5 * records[-1]["loss"] + 0.1:
        said.append(
            f"epoch {len(records)}: held-out loss {records[-1]['held_out_loss']:.3f} against "
            f"{records[-1]['loss']:.3f} in training; it learns its items by heart: smaller rank, more dropout"
        )
    return said


def _epoch(
    items: Items,
    lora: GroupedLora,
    optimiser: torch.optim.Optimizer,
    recipe: Recipe,
    began: Sequence[Tensor],
    epoch: int,
    progress: tuple[int, int],
) -> Record:
    """One pass over the batches in the order of this epoch."""
    order = np.random.default_rng((recipe.seed, epoch)).permutation(len(items.rows.rows))
    torch.manual_seed(1_000_003 * (recipe.seed + 1) + epoch)
    lengths = torch.from_numpy(items.rows.lengths)
    sums: dict[str, float] = {}
    for step, number in enumerate(order.tolist(), start=progress[0]):
        for group in optimiser.param_groups:
            group["lr"] = recipe.lr * _schedule(step, progress[1])
        scores = items.rows.scores(number, lora, recipe.dropout)
        gold = torch.from_numpy(items.gold[items.rows.members[number]])
        parts = losses(scores, gold, lengths, recipe)
        if recipe.anchor:
            moved = [(now - then).square().sum() for now, then in zip(lora.parameters, began, strict=True)]
            parts["anchor"] = recipe.anchor * torch.stack(moved).sum()
        loss = torch.stack(list(parts.values())).sum()
        if not torch.isfinite(loss):
            raise DataError(f"the loss is {float(loss.detach())} in epoch {epoch + 1}; take a smaller lr")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lora.parameters, recipe.clip)
        optimiser.step()
        for name, value in {"loss": loss, **{f"loss_{k}": v for k, v in parts.items()}}.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach()) * len(gold)
    return {name: value / len(items.gold) for name, value in sums.items()}


def _schedule(step: int, steps: int) -> float:
    """The learning rate as a share of its largest."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _best(records: Sequence[Record]) -> int:
    """The epoch with the smallest held-out loss, else the last."""
    values = [record.get("held_out_loss") for record in records]
    known = [value for value in values if value is not None]
    return values.index(min(known)) if known else len(records) - 1


def _over(records: Sequence[Record], recipe: Recipe) -> bool:
    return len(records) - 1 - _best(records) >= recipe.patience if records else False


@contextmanager
def _frozen(model: torch.nn.Module) -> Iterator[None]:
    """No parameter of the model asks for a gradient inside."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def _save(
    path: Path,
    lora: GroupedLora,
    optimiser: torch.optim.Optimizer,
    best: dict[str, Tensor],
    began: Sequence[Tensor],
    records: list[Record],
    recipe: Recipe,
) -> None:
    tensors = {f"now.{name}": tensor for name, tensor in lora.state().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for number, tensor in enumerate(began):
        tensors[f"began.{number}"] = tensor.cpu()
    for number, parameter in enumerate(lora.parameters):
        for name, value in optimiser.state[parameter].items():
            tensors[f"optimiser.{number}.{name}"] = value.detach().cpu()
    total = sum(parameter.numel() for parameter in lora.model.parameters())
    told = {
        "version": VERSION, "recipe": asdict(recipe), "records": records, "epoch": len(records),
        "trainable": lora.trainable, "total": total,
    }  # fmt: skip
    write_atomic(path, save({k: v.contiguous() for k, v in tensors.items()}, {"training": json.dumps(told)}))


def _resume(
    path: Path, lora: GroupedLora, optimiser: torch.optim.Optimizer, recipe: Recipe
) -> tuple[list[Record], dict[str, Tensor], list[Tensor]]:
    """Take up a checkpoint: (records, best adapters, where they began)."""
    with safe_open(path, framework="pt") as file:
        told: dict[str, Any] = json.loads(file.metadata()["training"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if told["version"] != VERSION or told["recipe"] != asdict(recipe):
        raise DataError(f"{path}: a checkpoint of another recipe; remove it")

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    lora.load(part("now."))
    device = lora.parameters[0].device
    for number, parameter in enumerate(lora.parameters):
        found = part(f"optimiser.{number}.")
        optimiser.state[parameter] = {k: v if k == "step" else v.to(device) for k, v in found.items()}
    began = [tensors[f"began.{number}"].to(device) for number in range(len(lora.parameters))]
    return told["records"], part("best."), began
