"""From histories to adapters to scores.

An adapter learns from the labelled items of the users' histories, each asked as a question is, and never from a
question or its gold label. Levels:

    unified   one adapter for all users
    cluster   one for each group of users (`clusters`); a new user gets that of the nearest group
    user      one for each user, from that user's items alone; a user without one is answered by the model itself

`anchor` > 0 starts groups and users at the unified adapter and penalises the distance to it (constrained LoRA). Every
fifth user is held out, at level `user` every user's newest fifth of the items; the best epoch is the one with the
smallest loss there. What was trained lies in a folder named by all that it depends on: PEFT's files a group, the
checkpoint, and record.json with every epoch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from personalization.backbones.cached import CachedScorer
from personalization.data.prompts import WORDINGS, continuations, is_asked, prompt
from personalization.data.records import Dataset, Question
from personalization.data.splits import user_blocks
from personalization.errors import DataError
from personalization.files import sha256_of, write_atomic
from personalization.methods.clusters import Clusters, cluster, histories_of
from personalization.methods.heads import Head, fit_head
from personalization.methods.priors import log_softmax
from personalization.scoring.store import key_of

LEVELS = ("unified", "cluster", "user")
HELD_OUT = 5
"""One user, or item, in so many is held out."""
RECORD = "record.json"
FOLDS = 4
"""Parts of the tune users, for heads that are judged on users they did not learn from."""

Report = Callable[["Labelled", NDArray[np.float32]], None]
"""Called after each epoch with the held-out items and their scores [m, K]; may raise to end the training."""


class Labelled(NamedTuple):
    """Items to learn from: prompts, columns of their labels, the users that they are of."""

    prompts: list[str]
    gold: NDArray[np.int64]
    users: list[str]

    def some(self, rows: Sequence[int]) -> Labelled:
        """These rows."""
        return Labelled([self.prompts[i] for i in rows], self.gold[list(rows)], [self.users[i] for i in rows])


@dataclass(frozen=True)
class Plan:
    """What to train. `start`: the first adapted layer, a share of the depth; `word_dropout`: rate of a second view."""

    level: str = "unified"
    groups: int = 4
    cluster_by: str = "words"
    rank: int = 4
    targets: str = "all"
    start: float = 0.5
    word_dropout: float = 0.0
    epochs: int = 4
    lr: float = 2e-3
    weight_decay: float = 0.01
    dropout: float = 0.0
    margin: float = 0.0
    diversity: float = 0.0
    anchor: float = 0.0


@dataclass(frozen=True)
class Trained:
    """Adapters on disk. `groups`: user -> number, for those it was trained for; `clusters` for everybody else."""

    folder: Path
    level: str
    first: int
    count: int
    groups: Mapping[str, int]
    clusters: Clusters | None
    record: Mapping[str, Any]

    def listed(self) -> dict[str, Any]:
        """JSON-able, with the content of the adapters."""
        return {
            "folder": str(self.folder.resolve()),
            "sha256": content_of(self.folder, self.count),
            "level": self.level,
            "first": self.first,
            "count": self.count,
            "groups": dict(self.groups),
            "clusters": None if self.clusters is None else self.clusters.listed(),
        }

    @classmethod
    def from_listed(cls, listed: Mapping[str, Any]) -> Trained:
        """What `listed` gave; DataError where the adapters are not those."""
        folder = Path(listed["folder"])
        if not folder.is_dir() or content_of(folder, listed["count"]) != listed["sha256"]:
            raise DataError(
                f"{folder}: the adapters of this config are missing or changed; restore them or promote again"
            )
        clusters = None if listed["clusters"] is None else Clusters.from_listed(listed["clusters"])
        return cls(folder, listed["level"], listed["first"], listed["count"], listed["groups"], clusters, {})


def content_of(folder: Path, count: int) -> str:
    """SHA-256 over the adapters of all groups."""
    digest = hashlib.sha256()
    for group in range(count):
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            path = folder / f"group-{group}" / name
            digest.update(f"{group} {name} {sha256_of(path) if path.exists() else 'missing'}\n".encode())
    return digest.hexdigest()


def labelled_items(dataset: Dataset, kind: str = "causal") -> Labelled:
    """The labelled items of every user's longest history, without any that one of the user's questions asks about."""
    column, about = {label: i for i, label in enumerate(dataset.labels)}, WORDINGS[kind].about
    asked: dict[str, list[Question]] = {}
    for question in dataset.questions:
        asked.setdefault(question.user_id, []).append(question)
    found: list[tuple[str, int, str]] = []
    for user, items in histories_of(dataset).items():
        for item in items:
            if item.label in column and not any(is_asked(dataset.task, q, item) for q in asked[user]):
                found.append((about(dataset.task, asked[user][0], item.text), column[item.label], user))
    if not found:
        raise DataError("adapters learn from labelled history items, and there are none; use objective: calibration")
    return Labelled([p for p, _, _ in found], np.array([y for _, y, _ in found]), [u for _, _, u in found])


def held_out(items: Labelled, level: str) -> tuple[Labelled, Labelled]:
    """(items to learn from, items to judge by)."""
    if level == "user":
        place = dict.fromkeys(items.users, 0)
        sizes = {user: items.users.count(user) for user in place}
        judged = []
        for row, user in enumerate(items.users):
            place[user] += 1
            if place[user] > sizes[user] - sizes[user] // HELD_OUT:
                judged.append(row)
    else:
        order = sorted(set(items.users), key=lambda user: hashlib.sha256(user.encode()).digest())
        chosen = set(order[::HELD_OUT]) if len(order) > 1 else set()
        judged = [row for row, user in enumerate(items.users) if user in chosen]
    rest = sorted(set(range(len(items.users))) - set(judged))
    return items.some(rest), items.some(judged)


def with_words_dropped(items: Labelled, rate: float) -> Labelled:
    """The same items, each word behind the instruction left out at this rate."""
    random = np.random.default_rng(0)
    out = []
    for text in items.prompts:
        stem, mark, rest = text.rpartition(": ")
        words = rest.split(" ")
        kept = [word for word, drawn in zip(words, random.random(len(words)), strict=True) if drawn >= rate]
        out.append(stem + mark + " ".join(kept or words))
    return Labelled(out, items.gold, items.users)


class UserHeads:
    """A logistic head on what the backbone makes of items: its embeddings, or a causal model's states at some depth."""

    def __init__(self, scorer: CachedScorer, folder: Path) -> None:
        self.scorer, self.folder = scorer, folder
        self._features: dict[tuple[Any, ...], NDArray[np.float32]] = {}

    def learn(self, dataset: Dataset, c: float, depth: float) -> Head:
        """Fit on the labelled items of a data set's users."""
        items, about = labelled_items(dataset, self.scorer.kind), WORDINGS[self.scorer.kind].about
        labels = [about(dataset.task, dataset.questions[0], label) for label in dataset.labels]
        return fit_head(self._of(items.prompts, depth), items.gold, self._of(labels, depth), c)

    def crossed(self, dataset: Dataset, c: float, depth: float) -> NDArray[np.float32]:
        """log p(label | question) by heads that did not learn from the question's user, float32 [n, K].

        The users are dealt into FOLDS; each fold is answered by the head of the others, as a new user would be.
        """
        blocks = user_blocks([q.user_id for q in dataset.questions], FOLDS)
        out = np.empty((len(dataset), len(dataset.labels)), dtype=np.float32)
        for rows in blocks:
            own = {dataset.questions[i].user_id for i in rows}
            others = dataset.of_users({q.user_id for q in dataset.questions} - own) if len(blocks) > 1 else dataset
            part = Dataset(dataset.task, dataset.labels, tuple(dataset.questions[i] for i in rows))
            out[rows] = self.scores(part, self.learn(others, c, depth), depth)
        return out

    def scores(self, dataset: Dataset, head: Head, depth: float) -> NDArray[np.float32]:
        """log p(label | question), float32 [n, K]."""
        wording = WORDINGS[self.scorer.kind]
        prompts = [wording.prompt(dataset.task, q) for q in dataset.questions]
        return np.asarray(head.log_probs(self._of(prompts, depth)), dtype=np.float32)

    def save(self, head: Head) -> dict[str, Any]:
        """Write the head under its content; what a deploy config says of it."""
        content = safetensors.numpy.save(head.arrays())
        digest = hashlib.sha256(content).hexdigest()
        path = self.folder / f"head-{digest[:32]}.safetensors"
        write_atomic(path, content)
        return {"file": str(path.resolve()), "sha256": digest}

    def _of(self, prompts: Sequence[str], depth: float) -> NDArray[np.float32]:
        key = (depth if self.scorer.kind == "causal" else None, *prompts)
        if key not in self._features:
            if self.scorer.kind == "encoder":
                self._features[key] = self.scorer.embeddings(prompts)
            else:
                states = self.scorer.last_states(prompts)
                self._features[key] = states[:, min(int(depth * states.shape[1]), states.shape[1] - 1)]
        return self._features[key]


def load_head(listed: Mapping[str, Any]) -> Head:
    """The head that a deploy config names; DataError where it is not that one."""
    path = Path(listed["file"])
    if not path.is_file() or sha256_of(path) != listed["sha256"]:
        raise DataError(f"{path}: the head of this config is missing or changed; restore it or promote again")
    return Head(**safetensors.numpy.load(path.read_bytes()))


class UserAdapters:
    """Trains adapters on the histories of data sets, and scores questions with them. `folder`: where they lie."""

    def __init__(self, scorer: CachedScorer, folder: Path, progress: Callable[[int, int], None] | None = None) -> None:
        self.scorer, self.folder, self.progress = scorer, folder, progress

    def learn(self, dataset: Dataset, plan: Plan, report: Report | None = None) -> Trained:
        """Train as planned, or read what was trained before."""
        from personalization.methods.lora import GroupedLora, LoraShape, adapted_modules, load_lora
        from personalization.methods.training import VERSION, Items, Recipe, flags, train

        items, backbone = labelled_items(dataset), self._backbone
        start = replace(plan, level="unified", anchor=0.0)
        origin = self.learn(dataset, start) if plan.anchor and plan.level != "unified" else None
        clusters, groups, count = self._groups(dataset, plan)
        first = min(int(plan.start * backbone.depth), backbone.depth - 1)
        key = {"identity": self.scorer.identity, "version": VERSION, "plan": asdict(plan),
               "items": items.prompts, "users": items.users,
               "gold": items.gold.tolist(), "groups": dict(groups), "labels": list(dataset.labels)}  # fmt: skip
        folder = self.folder / key_of(key)[:32]
        if (folder / RECORD).exists():
            return Trained(
                folder, plan.level, first, count, groups, clusters, json.loads((folder / RECORD).read_text())
            )
        shape = LoraShape(
            tuple(adapted_modules(backbone.model, first, plan.targets)), plan.rank, 2.0 * plan.rank, count
        )
        lora = GroupedLora(backbone.model, shape)
        if origin is not None:
            one = load_lora(backbone.model, [origin.folder / "group-0"]).state()
            lora.load({name: tensor.expand(count, -1, -1) for name, tensor in one.items()})
        learned, judged = held_out(items, plan.level)

        def rows(part: Labelled) -> Items:
            own = np.array([groups[user] for user in part.users])
            return Items(self._rows(part.prompts, part.users, own, dataset, first), part.gold)

        views = [rows(learned)]
        if plan.word_dropout:
            views.append(rows(with_words_dropped(learned, plan.word_dropout)))
        recipe = Recipe(
            epochs=plan.epochs, lr=plan.lr, weight_decay=plan.weight_decay, dropout=plan.dropout, margin=plan.margin,
            diversity=plan.diversity, anchor=plan.anchor,
        )  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        watch = None if report is None else lambda scores: report(judged, scores)
        records = train(
            views, rows(judged) if judged.users else None, lora, recipe, folder / "checkpoint.safetensors", watch
        )
        for group in range(count):
            lora.save(folder / f"group-{group}", group, self.scorer.model)
        record = {
            "plan": asdict(plan), "records": records, "flags": flags(records), "trainable": lora.trainable,
            "total": sum(p.numel() for p in backbone.model.parameters()), "items": len(learned.users),
            "held_out_items": len(judged.users), "groups": count,
            "sizes": np.bincount(list(groups.values()), minlength=count).tolist(),
            "silhouette": None if clusters is None else clusters.silhouette,
        }  # fmt: skip
        if clusters is not None:
            write_atomic(folder / "cluster_map.json", json.dumps({"users": dict(groups), **clusters.listed()}))
        write_atomic(folder / RECORD, json.dumps(record, indent=2) + "\n")
        return Trained(folder, plan.level, first, count, groups, clusters, record)

    def scores(self, dataset: Dataset, trained: Trained) -> NDArray[np.float32]:
        """Scores of the questions with their users' adapters, float32 [n, K]."""
        from personalization.methods.lora import load_lora

        lora = load_lora(self._backbone.model, [trained.folder / f"group-{group}" for group in range(trained.count)])
        groups = self.assigned(dataset, trained)
        users = [q.user_id for q in dataset.questions]
        own = np.array([groups[user] for user in users])
        prompts = [prompt(dataset.task, q) for q in dataset.questions]
        table: NDArray[np.float32] = self._rows(prompts, users, own, dataset, trained.first).table(lora, self.progress)
        return table

    @property
    def _backbone(self) -> Any:
        return self.scorer.backbone

    def _rows(
        self, prompts: Sequence[str], users: Sequence[str], groups: NDArray[np.int64], dataset: Dataset, first: int
    ) -> Any:
        from personalization.methods.adapted_rows import AdaptedRows

        spoken = continuations(dataset.labels)
        folder = self.scorer.folder / "states"
        return AdaptedRows(self._backbone, prompts, users, groups, spoken, first, folder, self.scorer.identity)

    def _groups(self, dataset: Dataset, plan: Plan) -> tuple[Clusters | None, dict[str, int], int]:
        """(clusters, the group of each user, number of groups)."""
        histories = histories_of(dataset)
        if plan.level == "unified":
            return None, dict.fromkeys(histories, 0), 1
        if plan.level == "user":
            return None, {user: number for number, user in enumerate(histories)}, len(histories)
        known = list(histories.values())
        clusters = cluster(plan.cluster_by, known, dataset.labels, self.scorer.embeddings, plan.groups)
        numbers = clusters.assign(clusters.features(known, self.scorer.embeddings)).tolist()
        return clusters, dict(zip(histories, numbers, strict=True)), len(clusters.centres)

    def assigned(self, dataset: Dataset, trained: Trained) -> dict[str, int]:
        """The adapter of each user: by the history that comes with the questions, -1 for none."""
        histories = histories_of(dataset)
        if trained.clusters is not None:
            features = trained.clusters.features(list(histories.values()), self.scorer.embeddings)
            return dict(zip(histories, trained.clusters.assign(features).tolist(), strict=True))
        return {user: 0 if trained.level == "unified" else trained.groups.get(user, -1) for user in histories}


def blended(base: NDArray[np.float32], adapted: NDArray[np.float32], blend: float) -> NDArray[np.float32]:
    """A mean of the log-probabilities over labels, weighing the adapter's by `blend`; float32 [n, K]."""
    if blend == 1:
        return adapted
    return np.asarray((1 - blend) * log_softmax(base) + blend * log_softmax(adapted), dtype=np.float32)
