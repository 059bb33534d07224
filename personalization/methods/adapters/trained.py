"""Adapters as they lie on disk: which user has which, and where somebody new belongs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from personalization.errors import DataError
from personalization.files import sha256_of
from personalization.methods.history.clusters import Clusters


class Context(NamedTuple):
    """Which items of the history stand in a prompt."""

    k: int
    ranking: str
    mix: float


@dataclass(frozen=True)
class Trained:
    """Adapters on disk. `groups`: user -> number, for those it was trained for; `clusters` for everybody else.

    `below`: the adapters of all users that prefixes of `prefix` tokens stand on; `idle`: groups whose prefix has had
    nothing to learn from, so that `below` answers them.
    """

    folder: Path
    level: str
    first: int
    count: int
    context: Context
    groups: Mapping[str, int]
    clusters: Clusters | None
    below: Trained | None
    prefix: int
    idle: tuple[int, ...]
    record: Mapping[str, Any]

    def listed(self) -> dict[str, Any]:
        """JSON-able, with the content of the adapters."""
        return {
            "folder": str(self.folder.resolve()),
            "sha256": content_of(self.folder, self.count),
            "level": self.level,
            "first": self.first,
            "count": self.count,
            "context": self.context._asdict(),
            "groups": dict(self.groups),
            "clusters": None if self.clusters is None else self.clusters.listed(),
            "below": None if self.below is None else self.below.listed(),
            "prefix": self.prefix,
            "idle": list(self.idle),
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
        below = None if listed["below"] is None else cls.from_listed(listed["below"])
        plain = {name: listed[name] for name in ("level", "first", "count", "groups", "prefix")}
        context, idle = Context(**listed["context"]), tuple(listed["idle"])
        return cls(folder=folder, context=context, clusters=clusters, below=below, idle=idle, record={}, **plain)

    def load(self, model: Any) -> Any:
        """The adapters, to be applied to this model."""
        from personalization.methods.adapters.lora import load_lora
        from personalization.methods.adapters.prefix import load_prefix

        folders = [self.folder / f"group-{group}" for group in range(self.count)]
        return load_lora(model, folders) if self.below is None else load_prefix(self.below.load(model), folders)


def content_of(folder: Path, count: int) -> str:
    """SHA-256 over the adapters of all groups."""
    digest = hashlib.sha256()
    for group in range(count):
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            path = folder / f"group-{group}" / name
            digest.update(f"{group} {name} {sha256_of(path) if path.exists() else 'missing'}\n".encode())
    return digest.hexdigest()
