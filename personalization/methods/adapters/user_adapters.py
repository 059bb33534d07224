"""From histories to trained adapters.

An adapter learns from the labelled items of the users' histories, each asked as a question is, with k of the user's
other items in front of it, and never from a question or its gold label. Levels:

In a sentence encoder a text is asked alone, and LoRA moves its embedding (`encoded_rows`).

    unified   one adapter for all users
    cluster   one for each group of users (`clusters`); a new user gets that of the nearest group
    user      one for each user, from that user's items alone; a user without one is answered by the model itself.
              As many users train side by side as `TOGETHER` holds, one such part after another; a training in parts
              has one record, the mean over them, and tells no pruner of its evaluations

`adapter` is lora, or prefix: a prefix on top of the frozen LoRA of all users. `anchor` > 0 starts groups and users at
that LoRA and penalises the distance to it (constrained LoRA). It is trained by the plain recipe, once for all that
start from it or stand on it. Every fifth user is held out, at level `user` every user's newest fifth of the items; what
is kept is what had the smallest loss there. Every second epoch sees the items differently, where a rate says so: in the
model's own words (`training.paraphrases`), words or items of the history left out, other items in their place, or these
in another order; the record counts by user how many items each rate changes (`varied`). What was trained lies in a
folder named by all that it depends on: PEFT's files a group, and record.json with every evaluation and the seconds that
it took since it last began, its origin's included; until that is there, the checkpoint.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from personalization.backbones.cached import CachedScorer
from personalization.data.known import learned_histories
from personalization.data.records import Dataset
from personalization.errors import DataError, UsageError
from personalization.files import locked, sha256_of, write_atomic
from personalization.methods.adapters.edit import AdapterEdit
from personalization.methods.adapters.trained import Trained
from personalization.methods.history.asking import Asking
from personalization.methods.history.clusters import Clusters, Embed, grouped
from personalization.methods.history.labelled import (
    held_out,
    labelled_items,
    needed,
    varied,
    with_words_dropped,
)
from personalization.methods.training.judged import Judged, Report
from personalization.methods.training.recipe import Recipe
from personalization.scoring.store import Progress, key_of

RECORD, CHECKPOINT, PART = "record.json", "checkpoint.safetensors", "part-{}.json"
TOGETHER = 2e9
"""Bytes of users' adapters that are trained side by side; training holds them seven times."""
OF_TEXT, OF_ITEMS = ("word_dropout", "paraphrase"), ("history_dropout", "history_swap", "history_order")
"""Rates of the second view, of an item and of those in front of it."""
KEPT_CHECKPOINTS = 64
"""Trainings that were ended early and may go on; older ones would begin anew."""


@dataclass(frozen=True)
class Plan(Recipe):
    """What to train, and how: a recipe, judged twice an epoch.

    `start`: the first layer with a LoRA, a share of the depth; `prefix_tokens`: length of a prefix; `asking`: how
    items become prompts; `word_dropout`, `history_dropout`, `history_swap`, `history_order`, `paraphrase`: rates of the
    second view; `alpha`: LoRA's, in units of the rank.
    """

    evaluations: int = 2
    patience: int = 3
    adapter: str = "lora"
    level: str = "unified"
    groups: int = 4
    cluster_by: str = "words"
    rank: int = 4
    alpha: float = 2.0
    targets: str = "all"
    start: float = 0.5
    prefix_tokens: int = 8
    asking: Asking = field(default_factory=Asking)
    word_dropout: float = 0.0
    history_dropout: float = 0.0
    history_swap: float = 0.0
    history_order: float = 0.0
    paraphrase: float = 0.0

    @property
    def varies(self) -> bool:
        """Whether there is a second view."""
        return bool(self.rates)

    @property
    def rates(self) -> list[str]:
        """Names of the rates that change something."""
        of_items = [rate for rate in OF_ITEMS if getattr(self, rate)] if self.asking.k else []
        return [*(rate for rate in OF_TEXT if getattr(self, rate)), *of_items]


class _Part(NamedTuple):
    """What is trained at once: adapters from number `first` on, and their items."""

    first: int
    trained: Trained
    items: Dataset


@cache
def _code() -> str:
    """SHA-256 of the code that makes adapters: a mended recipe reads no old ones."""
    rooms = Path(__file__).parent, Path(__file__).parent.parent / "training"
    labelled = Path(__file__).parent.parent / "history" / "labelled.py"
    return "".join(sha256_of(file) for file in (*(f for room in rooms for f in sorted(room.glob("*.py"))), labelled))


def _of_all(plan: Plan) -> Plan:
    """The plan of the LoRA of all users that others start from or stand on: of the same shape, by the plain recipe."""
    return Plan(**{name: getattr(plan, name) for name in ("rank", "alpha", "targets", "start", "asking")})


class UserAdapters:
    """Trains adapters on the histories of data sets. `folder`: where they lie."""

    def __init__(self, scorer: CachedScorer, folder: Path, progress: Progress | None = None) -> None:
        self.scorer, self.folder, self.progress = scorer, folder, progress

    def learn(
        self, dataset: Dataset, plan: Plan, report: Report | None = None, items: Dataset | None = None
    ) -> Trained:
        """Train as planned, or read what was trained before. `items`: not all labelled ones, but these."""
        if plan.adapter == "prefix" and self.scorer.kind == "encoder":
            raise UsageError("a prefix needs a causal model; give adapter: lora, or the stage head")
        items, backbone = needed(labelled_items(dataset)) if items is None else items, self._backbone
        learned, judged = held_out(items, plan.level)
        origin = None
        if (plan.level != "unified" and plan.anchor) or plan.adapter == "prefix":
            known = learned if plan.level == "user" else items  # what judges a user's adapter is new to the origin, too
            origin = self.learn(dataset, _of_all(plan), items=known)
        clusters, groups, count = self._groups(dataset, plan)
        first = min(int(plan.start * backbone.depth), backbone.depth - 1)
        key = {
            "identity": self.scorer.identity, "code": _code(), "plan": asdict(plan),
            "prompts": self._prompts(items, plan), "gold": [(q.id, q.gold) for q in items.questions],
            "varied": self._prompts(items, plan, vary=True) if plan.varies else None,
            "labels": plan.asking.spoken(self.scorer, items), "groups": dict(groups),
            "origin": None if origin is None else origin.content,
            "embedder": self.scorer.embedder.identity if clusters and plan.cluster_by == "embedding" else None,
        }  # fmt: skip
        folder = self.folder / key_of(key)[:32]
        trained = Trained(folder, plan.level, first, count, groups, clusters)
        if plan.adapter == "prefix":
            taught = {groups[q.user_id] for q in learned.questions}
            idle = tuple(group for group in range(count) if group not in taught)
            trained = replace(trained, first=0, below=origin, prefix=plan.prefix_tokens, idle=idle)
        with locked(folder / "lock"):
            told = Judged(items, judged, folder / "judged.safetensors", report)
            if not (folder / RECORD).exists():
                self._train(items, plan, trained, origin, told)
                return replace(trained, record=json.loads((folder / RECORD).read_text()))
        record = json.loads((folder / RECORD).read_text())
        told.again(record["records"])
        return replace(trained, record=record)

    def tokens(self, items: Dataset, plan: Plan) -> int:
        """Tokens that one pass over these items runs while a LoRA of all users is trained, padding included."""
        everybody = {question.user_id: 0 for question in items.questions}
        rows = self._items(items, plan, Trained(self.folder, "unified", 0, 1, everybody)).rows
        return sum(int(np.prod(rows.shape(number))) for number in range(rows.batches))

    def _train(self, items: Dataset, plan: Plan, trained: Trained, origin: Trained | None, told: Judged) -> None:
        """Train into the folder of `trained`."""
        from personalization.methods.training.loop import kept, merged

        started, folder, parts = time.monotonic(), trained.folder, self._parts(items, plan, trained)
        found = [self._part(part, folder, plan, origin, told if len(parts) == 1 else None) for part in parts]
        records = merged([part["records"] for part in found], [len(part.items) for part in parts])
        learned, judged = held_out(items, plan.level)
        clusters, numbers = trained.clusters, list(trained.groups.values())
        record = {
            "plan": asdict(plan), "records": records, "kept": kept(records),
            "trainable": sum(part["trainable"] for part in found),
            "total": sum(p.numel() for p in self._backbone.model.parameters()), "items": len(learned),
            "held_out_items": len(judged), "groups": trained.count, "parts": len(parts),
            "sizes": np.bincount(numbers, minlength=trained.count).tolist(),
            "silhouette": None if clusters is None else clusters.silhouette,
            "varied": {rate: self._varied(learned, plan, rate) for rate in plan.rates},
            "seconds": round(time.monotonic() - started + (0.0 if origin is None else origin.record["seconds"]), 2),
        }  # fmt: skip
        write_atomic(folder / RECORD, json.dumps(record, indent=2) + "\n")
        for part in parts:
            (folder / PART.format(part.first)).unlink(missing_ok=True)

    def _parts(self, items: Dataset, plan: Plan, trained: Trained) -> list[_Part]:
        """What is trained at once, as its items allow: everything, but for too many users."""
        whole = [_Part(0, trained, items)]
        if plan.level != "user":
            return whole
        size = max(1, int(TOGETHER // self._bytes_of_one(plan, trained)))
        if trained.count <= size:
            return whole
        parts = []
        for first in range(0, trained.count, size):
            own = {user: n - first for user, n in trained.groups.items() if first <= n < first + size}
            asked = tuple(question for question in items.questions if question.user_id in own)
            part = replace(trained, groups=own, count=len(own))
            parts.append(_Part(first, part, Dataset(items.task, items.labels, asked)))
        return parts

    def _bytes_of_one(self, plan: Plan, trained: Trained) -> int:
        """Of one adapter; of a prefix at most, as if every head had keys and values of its own."""
        from personalization.methods.adapters.lora import bytes_of_one

        model, depth = self._backbone.model, int(self._backbone.depth)
        if plan.adapter == "prefix":
            return 4 * plan.prefix_tokens * 2 * depth * int(model.config.get_text_config().hidden_size)
        return bytes_of_one(model, self._modules(plan, trained), plan.rank)

    def _part(
        self, part: _Part, folder: Path, plan: Plan, origin: Trained | None, told: Judged | None
    ) -> dict[str, Any]:
        """Train a part, and write its adapters: its records, and how much was trained; read where that was done."""
        from personalization.scoring.passes import shrinking

        place, first, trained = folder / PART.format(part.first), part.first, part.trained
        if not place.exists():
            fitted = shrinking(self._backbone, lambda: self._fitted(part.items, plan, trained, origin, told))
            for group in range(trained.count):
                fitted[0].save(folder / f"group-{first + group}", group, self.scorer.model)
            write_atomic(place, json.dumps({"records": fitted[1], "trainable": fitted[0].trainable}))
            (folder / CHECKPOINT).unlink(missing_ok=True)
        found: dict[str, Any] = json.loads(place.read_text())
        return found

    def _fitted(
        self, items: Dataset, plan: Plan, trained: Trained, origin: Trained | None, told: Judged | None
    ) -> tuple[Any, list[dict[str, float]]]:
        """(trained adapters, the records of their training), from a checkpoint where there is one."""
        from personalization.methods.training.loop import train

        learned, judged = held_out(items, plan.level)
        if not learned.questions:  # a part whose users have no labelled item
            return self._new(plan, trained, origin, None), []
        views = [self._items(learned, plan, trained)]
        if plan.varies:
            views.append(self._items(learned, plan, trained, vary=True))
        adapters = self._new(plan, trained, origin, views[0].rows)
        self._forget_old_checkpoints()
        judge = self._items(judged, plan, trained) if judged.questions else None
        return adapters, train(views, judge, adapters, plan, trained.folder / CHECKPOINT, told)

    def _forget_old_checkpoints(self) -> None:
        with suppress(FileNotFoundError):  # another process may do the same
            known = sorted(self.folder.glob(f"*/{CHECKPOINT}"), key=lambda path: path.stat().st_mtime)
            for path in known[:-KEPT_CHECKPOINTS]:
                path.unlink()

    def _new(self, plan: Plan, trained: Trained, origin: Trained | None, rows: Any) -> Any:
        """Adapters that have learned nothing yet, or what `origin` has; a prefix begins as the first of `rows` does."""
        from personalization.methods.adapters.lora import GroupedLora, LoraShape
        from personalization.methods.adapters.prefix import GroupedPrefix, first_tokens

        model = self._backbone.model
        if trained.below is not None:
            below, tokens = trained.below.on(model), first_tokens(rows.route.prompts[0], plan.prefix_tokens)
            return GroupedPrefix.begun(below, tokens, trained.count)
        shape = LoraShape(self._modules(plan, trained), plan.rank, plan.alpha * plan.rank, trained.count)
        lora = GroupedLora(model, shape)
        if origin is not None:
            one = origin.on(model).state()
            lora.load({name: tensor.expand(trained.count, -1, -1) for name, tensor in one.items()})
        return lora

    def _modules(self, plan: Plan, trained: Trained) -> tuple[str, ...]:
        """The linear maps that get a LoRA."""
        from personalization.methods.adapters.lora import adapted_modules

        modules = adapted_modules(self._backbone.model, self._backbone.layers[trained.first :], plan.targets)
        if not modules:
            raise DataError(f"targets: {plan.targets} names no linear map in this model's layers; use targets: all")
        return modules

    @property
    def _backbone(self) -> Any:
        return self.scorer.backbone

    def _items(self, items: Dataset, plan: Plan, trained: Trained, vary: bool = False) -> Any:
        """Items ready to be learned from, or judged by."""
        from personalization.methods.training.loop import Items

        column = {label: i for i, label in enumerate(items.labels)}
        gold = np.array([column[q.gold] for q in items.questions if q.gold is not None])
        groups = np.array([trained.groups[q.user_id] for q in items.questions], dtype=np.int64)
        users = [q.user_id for q in items.questions]
        edit = AdapterEdit(None, groups, users, trained.first - 1, trained.prefix)
        prompts, spoken = self._prompts(items, plan, vary), plan.asking.spoken(self.scorer, items)
        return Items(self._backbone.fixed(prompts, spoken, [edit], self.scorer.shelf), gold, edit)

    def _prompts(self, items: Dataset, plan: Plan, vary: bool = False) -> list[str]:
        """The prompts of items; `vary` shows them by the rates of the second view."""
        asked = items
        if vary:
            from personalization.methods.training.paraphrases import with_paraphrases

            told = with_paraphrases(items, plan.paraphrase, plan.asking, self.scorer, self.folder, self.progress)
            asked = with_words_dropped(told, plan.word_dropout)
        if not vary or not plan.asking.k:
            return plan.asking.prompts(self.scorer, asked)[0]
        rates = (plan.history_dropout, plan.history_swap, plan.history_order)
        ranked = plan.asking.ranked(self.scorer, items, plan.asking.k * (2 if plan.history_swap else 1))
        return plan.asking.with_items(self.scorer, asked, varied(ranked, plan.asking.k, *rates))[0]

    def _varied(self, items: Dataset, plan: Plan, rate: str) -> dict[str, int]:
        """user -> how many of the user's items one rate alone changes."""
        others: dict[str, Any] = {other: 0.0 for other in (*OF_TEXT, *OF_ITEMS) if other != rate}
        alone = replace(plan, **others)
        pairs = zip(items.questions, self._prompts(items, plan), self._prompts(items, alone, vary=True), strict=True)
        counts = dict.fromkeys((q.user_id for q in items.questions), 0)
        for question, before, after in pairs:
            counts[question.user_id] += before != after
        return counts

    def _groups(self, dataset: Dataset, plan: Plan) -> tuple[Clusters | None, dict[str, int], int]:
        """(clusters, the group of each user, number of groups)."""
        histories = learned_histories(dataset)
        if plan.level == "unified":
            return None, dict.fromkeys(histories, 0), 1
        if plan.level == "user":
            return None, {user: number for number, user in enumerate(histories)}, len(histories)
        clusters, groups = grouped(plan.cluster_by, histories, dataset.labels, self.scorer.embeddings, plan.groups)
        return clusters, groups, len(clusters.centres)


def placed(dataset: Dataset, trained: Trained, embed: Embed) -> dict[str, Any]:
    """The users of a data set in the plane [U, 2] with their groups [U], of adapters that have groups."""
    assert trained.clusters is not None
    features = trained.clusters.features(list(learned_histories(dataset).values()), embed)
    places, groups = trained.clusters.plane(features), trained.clusters.assign(features)
    groups = np.where(np.isin(groups, trained.idle), -1, groups)
    return {"places": places, "groups": groups, "silhouette": trained.clusters.silhouette}
