"""Training adapters on labelled items, above frozen layers.

    loss = label * CE(softmax_y score, gold) + token * NLL of the gold continuation, a token
         + margin * mean max(0, 1 - (score_gold - best wrong score))
         + match * CE(softmax_y cos(q, e_y) / 0.1, gold)
         + diversity * max(0, H(gold of the batch) - H(mean prediction of the batch))
         + anchor * mean ||adapter of the item's group - where it began||^2

with scores log p(label's continuation | prompt), q the last hidden state at the prompt's end and e_y the mean of the LM
head's rows for the label's tokens (a contrastive loss, as in CLIP, Radford et al. 2021); of an encoder, the embeddings
of text and label. Steps by AdamW, each group by itself (`grouped_adamw`); after a linear warm-up cosine decay, or half
the rate after each evaluation that is not the best so far; the gradients of `accumulate` batches make a step. B may
learn faster than A (LoRA+, Hayou et al. 2024). Several times in each epoch the held-out items are measured; what has
the best loss there is kept, and `patience` evaluations without a better one end the training. With each goes a
checkpoint of adapters, optimiser and records; the order of batches and the dropout depend on seed and place alone, so a
training that was killed goes on to the same bits on a CPU.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from personalization.errors import DataError, UsageError
from personalization.files import write_atomic
from personalization.methods.adapters.edit import AdapterEdit
from personalization.methods.adapters.prefix import Adapters
from personalization.methods.training.grouped_adamw import GroupedAdamW
from personalization.methods.training.recipe import Recipe
from personalization.metrics import entropy_bits, label_counts
from personalization.scoring.edits import Edit
from personalization.scoring.fixed import FixedRows
from personalization.scoring.fixed_texts import FixedTexts

log = logging.getLogger(__name__)

VERSION = 6
"""Of the recipe: a change that changes results raises it."""
SCHEDULES = ("cosine", "plateau")
SHARPNESS = 10.0
"""Scale of the cosines in the match loss."""


Record = dict[str, float]
"""What one stretch of an epoch gave, losses weighted; `epoch`: how many are done; `train_loss`: the unweighted cross
entropy over the labels, as `held_out_loss`."""
Watch = Callable[[NDArray[np.float32], Sequence[Record]], None]
"""Called after each evaluation with the scores of the held-out items [m, K] and all records; may raise to end it."""


@dataclass
class Items:
    """Labelled prompts: `rows`, the gold labels [n] of their prompts, and which adapter each has (`edit`)."""

    rows: FixedRows | FixedTexts
    gold: NDArray[np.int64]
    edit: AdapterEdit

    def under(self, adapters: Adapters, dropout: float = 0.0) -> tuple[Edit]:
        """The edit with these adapters."""
        return (replace(self.edit, adapters=adapters, dropout=dropout),)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the rows depend on, of the gold labels, and of who has which adapter from which layer on."""
        told = f"{self.rows.key} {self.edit.key} {self.edit.after}"
        return hashlib.sha256(told.encode() + self.gold.tobytes()).hexdigest()


def losses(
    scores: Tensor, gold: Tensor, lengths: Tensor, recipe: Recipe, cosines: Tensor | None = None
) -> dict[str, Tensor]:
    """Weighted parts of the loss of scores [b, K]; `lengths` [K]: tokens of each label; `cosines` [b, K] to match."""
    chosen = scores.gather(1, gold[:, None])[:, 0]
    found: dict[str, Tensor] = {}
    if recipe.label:
        found["label"] = recipe.label * torch.nn.functional.cross_entropy(scores, gold)
    if recipe.token:
        found["token"] = -recipe.token * chosen.sum() / lengths[gold].sum()
    if recipe.margin:
        wrong = scores.scatter(1, gold[:, None], -torch.inf).amax(dim=1)
        found["margin"] = recipe.margin * (1 - (chosen - wrong)).clamp(min=0).mean()
    if recipe.match and cosines is not None:
        found["match"] = recipe.match * torch.nn.functional.cross_entropy(SHARPNESS * cosines, gold)
    if recipe.diversity:
        mean = scores.softmax(dim=1).mean(dim=0)
        share = torch.bincount(gold, minlength=scores.shape[1]) / len(gold)
        wanted = -(share * share.clamp(min=1e-12).log()).sum()
        found["diversity"] = recipe.diversity * (wanted + (mean * mean.clamp(min=1e-12).log()).sum()).clamp(min=0)
    if not found:
        raise UsageError("nothing is learned: label, token, margin, match and diversity all have weight 0")
    return found


def train(
    train_sets: Sequence[Items],
    held_out: Items | None,
    lora: Adapters,
    recipe: Recipe,
    checkpoint: Path,
    watch: Watch | None = None,
) -> list[Record]:
    """Train the adapters in place, to the best evaluation; the records of all.

    Epoch e takes `train_sets[e % len]`: views of the same items. `checkpoint` is where a killed training goes on from.
    Raises DataError where a loss is not finite.
    """
    slow, fast = lora.sides
    optimiser = GroupedAdamW([{"params": slow}, {"params": fast}], recipe.lr, recipe.weight_decay)
    stretches = _stretches(train_sets, recipe)
    began = [parameter.detach().clone() for parameter in lora.parameters] if recipe.anchor else []
    records: list[Record] = []
    best = lora.state()
    data = "\n".join(items.fingerprint for items in (*train_sets, *([] if held_out is None else [held_out])))
    place = _Checkpoint(checkpoint, recipe, hashlib.sha256(data.encode()).hexdigest())
    if checkpoint.exists():
        records, best, began = place.resume(lora, optimiser, began) or (records, best, began)
    with _frozen(lora.model):
        while len(records) < len(stretches) and not _over(records, recipe):
            record = _run(stretches, records, lora, optimiser, recipe, began)
            scores = None if held_out is None else held_out.rows.table(held_out.under(lora))
            record |= {} if scores is None or held_out is None else measured(scores, held_out.gold)
            records.append(record)
            if kept(records) == len(records) - 1:
                best = lora.state()
            place.save(lora, optimiser, best, began, records)
            if watch is not None and scores is not None:
                watch(scores, records)
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


class _Stretch(NamedTuple):
    """Steps between two evaluations: batches of `items` that make a step, and how many steps come before."""

    items: Items
    steps: list[list[int]]
    before: int
    total: int
    epoch: float


def _stretches(train_sets: Sequence[Items], recipe: Recipe) -> list[_Stretch]:
    """Every epoch in an order of its own, cut into as many stretches as there are evaluations."""
    epochs = []
    for epoch in range(recipe.epochs):
        items = train_sets[epoch % len(train_sets)]
        order = np.random.default_rng((recipe.seed, epoch)).permutation(items.rows.batches).tolist()
        steps = [order[at : at + recipe.accumulate] for at in range(0, len(order), recipe.accumulate)]
        epochs.append((items, steps))
    parts = min(recipe.evaluations, *(len(steps) for _, steps in epochs))
    total, before, found = sum(len(steps) for _, steps in epochs), 0, []
    for epoch, (items, steps) in enumerate(epochs):
        ends = np.linspace(0, len(steps), parts + 1).round().astype(int).tolist()
        for part, (start, end) in enumerate(pairwise(ends), start=1):
            found.append(_Stretch(items, steps[start:end], before + start, total, epoch + part / parts))
        before += len(steps)
    return found


def _run(
    stretches: Sequence[_Stretch],
    records: Sequence[Record],
    lora: Adapters,
    optimiser: GroupedAdamW,
    recipe: Recipe,
    began: Sequence[Tensor],
) -> Record:
    """The next stretch; mean losses over its prompts, and the learning rate at its end."""
    stretch, rate = stretches[len(records)], 0.0
    torch.manual_seed(1_000_003 * (recipe.seed + 1) + len(records))
    sums: dict[str, float] = {}
    for step, batches in enumerate(stretch.steps, start=stretch.before):
        rate = recipe.lr * _share_of_rate(step, stretch.total, recipe, records)
        for group, ratio in zip(optimiser.param_groups, (1.0, recipe.lr_ratio), strict=True):
            group["lr"] = rate * ratio
        optimiser.zero_grad(set_to_none=True)
        for name, value in _gradients(stretch, batches, lora, recipe, began).items():
            sums[name] = sums.get(name, 0.0) + value
        present, shares = _groups(stretch, batches, lora.parameters[0].device)
        optimiser.clip(present, shares, recipe.clip)
        optimiser.step(present)
    prompts = sum(len(stretch.items.rows.members[number]) for batches in stretch.steps for number in batches)
    means = {name: value / prompts for name, value in sums.items()}
    train_loss = {"train_loss": means["loss_label"] / recipe.label} if recipe.label else {}
    return {"epoch": stretch.epoch, "lr": rate, **train_loss, **means}


def _gradients(
    stretch: _Stretch, batches: Sequence[int], lora: Adapters, recipe: Recipe, began: Sequence[Tensor]
) -> dict[str, float]:
    """Leave the gradients of one step with the parameters; the parts of the loss, summed over the prompts."""
    rows, gold_of, sums = stretch.items.rows, stretch.items.gold, dict[str, float]()
    lengths = torch.from_numpy(rows.lengths)
    prompts = sum(len(rows.members[number]) for number in batches)
    for number in batches:
        gold = torch.from_numpy(gold_of[rows.members[number]])
        edits = stretch.items.under(lora, recipe.dropout)
        if recipe.match:
            scores, cosines = rows.scores_and_cosines(number, edits)
            parts = losses(scores, gold, lengths, recipe, cosines)
        else:
            parts = losses(rows.scores(number, edits), gold, lengths, recipe)
        if recipe.anchor:
            present, shares = _groups(stretch, [number], lora.parameters[0].device)
            moved = [
                (now[present] - then[present]).square().flatten(1).sum(dim=1)
                for now, then in zip(lora.parameters, began, strict=True)
            ]
            parts["anchor"] = (recipe.anchor * (torch.stack(moved).sum(dim=0) @ shares)).to(gold.device)
        loss = torch.stack(list(parts.values())).sum()
        if not torch.isfinite(loss):
            raise DataError(f"the loss is {float(loss.detach())} in epoch {stretch.epoch:g}; take a smaller lr")
        (loss * (len(gold) / prompts)).backward()
        for name, value in {"loss": loss, **{f"loss_{k}": v for k, v in parts.items()}}.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach()) * len(gold)
    return sums


def _groups(stretch: _Stretch, batches: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """The groups with prompts in these batches [n], and their shares of the prompts [n]."""
    rows = stretch.items.rows
    own = stretch.items.edit.groups[np.concatenate([rows.members[number] for number in batches])]
    present, counts = np.unique(own, return_counts=True)
    return torch.from_numpy(present).to(device), torch.from_numpy(counts / len(own)).float().to(device)


def _share_of_rate(step: int, steps: int, recipe: Recipe, records: Sequence[Record]) -> float:
    """The learning rate as a share of its largest, by the recipe's schedule."""
    warm = max(1, round(recipe.warm_up * steps))
    if recipe.schedule == "cosine":
        return _cosine(step, steps, warm)
    if recipe.schedule != "plateau":
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, but got {recipe.schedule!r}")
    losses_so_far = [record.get("held_out_loss", record["loss"]) for record in records]
    misses = sum(loss >= min(losses_so_far[:at]) for at, loss in enumerate(losses_so_far) if at)
    return float(min(1.0, (step + 1) / warm) * 0.5**misses)


def _cosine(step: int, steps: int, warm: int) -> float:
    """Linear warm-up, then cosine decay."""
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def kept(records: Sequence[Record]) -> int:
    """Which record's adapters are kept: that with the smallest held-out loss, else the last."""
    values = [record.get("held_out_loss") for record in records]
    known = [value for value in values if value is not None]
    return values.index(min(known)) if known else len(records) - 1


def merged(trainings: Sequence[Sequence[Record]], sizes: Sequence[int]) -> list[Record]:
    """The course of trainings of different adapters as one: the mean over them, weighted by their items `sizes`.

    One that has ended stays as what of it is kept. What not all of them measured is left out.
    """
    if len(trainings) == 1:
        return list(trainings[0])
    ran = [(records, size) for records, size in zip(trainings, sizes, strict=True) if records]
    weights, found = [size for _, size in ran], list[Record]()
    for longest in max((records for records, _ in ran), key=len):
        step = len(found)
        now = [records[step if step < len(records) else kept(records)] for records, _ in ran]
        names = [name for name in longest if all(name in record for record in now)]
        means = {name: float(np.average([record[name] for record in now], weights=weights)) for name in names}
        found.append({**means, "epoch": longest["epoch"]})
    return found


def _over(records: Sequence[Record], recipe: Recipe) -> bool:
    return len(records) - 1 - kept(records) >= recipe.patience if records else False


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


class _Checkpoint(NamedTuple):
    """Where a training stands. `data`: what it learns from and is judged by."""

    path: Path
    recipe: Recipe
    data: str

    def save(
        self,
        lora: Adapters,
        optimiser: torch.optim.Optimizer,
        best: dict[str, Tensor],
        began: Sequence[Tensor],
        records: list[Record],
    ) -> None:
        """Write everything that going on needs, in one step: the best adapters where they are not the present ones."""
        tensors = {f"now.{name}": tensor for name, tensor in lora.state().items()}
        if kept(records) != len(records) - 1:
            tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
        tensors |= {f"began.{number}": start.cpu() for number, start in enumerate(began)}
        for number, parameter in enumerate(lora.parameters):
            for name, value in optimiser.state[parameter].items():
                tensors[f"optimiser.{number}.{name}"] = value.detach().cpu()
        told = {
            "version": VERSION, "recipe": asdict(self.recipe), "data": self.data, "records": records,
            "epoch": records[-1]["epoch"], "trainable": lora.trainable,
            "total": sum(parameter.numel() for parameter in lora.model.parameters()),
        }  # fmt: skip
        write_atomic(self.path, save({k: v.contiguous() for k, v in tensors.items()}, {"training": json.dumps(told)}))

    def resume(
        self, lora: Adapters, optimiser: torch.optim.Optimizer, began: list[Tensor]
    ) -> tuple[list[Record], dict[str, Tensor], list[Tensor]] | None:
        """Take up what was written: (records, best adapters, where they began); None where it is of something else."""
        with safe_open(self.path, framework="pt") as file:
            told: dict[str, Any] = json.loads(file.metadata()["training"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if (told["version"], told["recipe"], told["data"]) != (VERSION, asdict(self.recipe), self.data):
            log.warning("%s is of another recipe or other items; the training begins anew", self.path)
            return None

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

        now = part("now.")
        lora.load(now)
        device = lora.parameters[0].device
        for number, parameter in enumerate(lora.parameters):
            found = part(f"optimiser.{number}.")
            optimiser.state[parameter] = {name: value.to(device) for name, value in found.items()}
        began = [tensors[f"began.{number}"].to(device) for number in range(len(began))]
        return told["records"], part("best.") or now, began
