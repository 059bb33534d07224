"""Adapters as they lie on disk: which user has which, and where somebody new belongs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from personalization.data.records import Dataset
from personalization.files import sha256_of, write_atomic
from personalization.methods.history.clusters import Clusters, Embed

FILES = ("adapter_config.json", "adapter_model.safetensors")
USERS, GROUPS = "users.json", "groups.safetensors"
HELD = 2e9
"""Bytes of adapters up to which all of them are held where the model is."""


@dataclass(frozen=True)
class Trained:
    """Adapters on disk. `groups`: user -> number, for those it was trained for; `clusters` for everybody else.

    `first`: the lowest adapted layer; `count` adapters; `below`: the adapters of all users that prefixes of `prefix`
    tokens stand on; `idle`: groups whose prefix has had nothing to learn from, so that `below` answers them; `record`:
    the course of the training.
    """

    folder: Path
    level: str
    first: int
    count: int
    groups: Mapping[str, int]
    clusters: Clusters | None = None
    below: Trained | None = None
    prefix: int = 0
    idle: tuple[int, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> dict[str, Any]:
        """Copy everything that answers, as PEFT has it; what a deploy config says of it."""
        for group in range(self.count):
            target = folder / f"group-{group}"
            target.mkdir(parents=True, exist_ok=True)
            for name in FILES:
                shutil.copyfile(self.folder / f"group-{group}" / name, target / name)
        if self.level == "user":
            write_atomic(folder / USERS, json.dumps(self.groups, indent=0, sort_keys=True) + "\n")
        if self.clusters is not None:
            self.clusters.save(folder / GROUPS)
        listed = {"level": self.level, "first_layer": self.first, "count": self.count}
        if self.below is None:
            return listed
        below = self.below.save(folder / "below")
        return {**listed, "prefix_tokens": self.prefix, "idle": list(self.idle), "below": below}

    @classmethod
    def load(cls, listed: Mapping[str, Any], folder: Path) -> Trained:
        """What `save` wrote."""
        below = listed.get("below")
        users = folder / USERS
        return cls(
            folder=folder,
            level=listed["level"],
            first=listed["first_layer"],
            count=listed["count"],
            groups=json.loads(users.read_text()) if users.exists() else {},
            clusters=Clusters.load(folder / GROUPS) if (folder / GROUPS).exists() else None,
            below=None if below is None else cls.load(below, folder / "below"),
            prefix=listed.get("prefix_tokens", 0),
            idle=tuple(listed.get("idle", ())),
        )

    @cached_property
    def content(self) -> str:
        """Digest of the adapters of all groups."""
        names = [(group, name) for group in range(self.count) for name in FILES]
        found = [f"{group} {name} {sha256_of(self.folder / f'group-{group}' / name)}" for group, name in names]
        return "\n".join([*found, "" if self.below is None else self.below.content])

    @cached_property
    def bytes(self) -> int:
        """Of the adapters of all groups."""
        return sum((self.folder / f"group-{n}" / name).stat().st_size for n in range(self.count) for name in FILES)

    def on(self, model: Any) -> Any:
        """The adapters, to be applied to this model."""
        from personalization.methods.adapters.lora import load_lora
        from personalization.methods.adapters.prefix import load_prefix
        from personalization.methods.adapters.stored import StoredAdapters

        folders = [self.folder / f"group-{group}" for group in range(self.count)]
        below = None if self.below is None else self.below.on(model)
        read = partial(load_lora, model) if below is None else partial(load_prefix, below)
        return StoredAdapters(model, folders, read, below) if self.count > 1 and self.bytes > HELD else read(folders)

    def assigned(self, dataset: Dataset, embed: Embed) -> NDArray[np.int64]:
        """The adapter of each question, [n]: by what is known when it is asked, -1 for none."""
        if self.clusters is not None and dataset.questions:
            found = self.clusters.of_questions(dataset, embed)
        else:
            of_all = self.level == "unified"
            known = [0 if of_all else self.groups.get(q.user_id, -1) for q in dataset.questions]
            found = np.array(known, dtype=np.int64)
        return np.where(np.isin(found, self.idle), -1, found)
