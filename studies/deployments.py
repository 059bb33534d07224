"""Deploy configs and their generations.

The config is replaced atomically; each generation is kept in the home folder, so that it can be rolled back. A rollback
is a new generation with old content: generation numbers only grow.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml

from personalization.deployment import read_config
from personalization.errors import UsageError
from personalization.files import write_atomic


def _kept(home: Path, out: Path) -> Path:
    """Where the generations of a deploy config are kept."""
    place = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:12]
    return home / "deployments" / f"{out.stem}-{place}"


def _write(home: Path, out: Path, config: dict[str, Any]) -> int:
    kept = _kept(home, out)
    generations = [int(path.stem) for path in kept.glob("*.yaml")]
    generation = max(generations, default=0) + 1
    text = yaml.safe_dump({"generation": generation, **config}, sort_keys=False, allow_unicode=True)
    write_atomic(kept / f"{generation}.yaml", text)
    write_atomic(out, text)
    return generation


def publish(home: Path, out: Path, config: dict[str, Any]) -> int:
    """Write a new generation of a deploy config; its number. The one it replaces is noted in it."""
    previous = read_config(out)["generation"] if out.exists() else None
    return _write(home, out, {"previous_generation": previous, **config})


def published(home: Path, out: Path, state: str) -> int | None:
    """The generation in which the result of a study in this state was written to this place, if it was."""
    for path in _kept(home, out).glob("*.yaml"):
        config = read_config(path)
        if config["provenance"].get("state") == state and "restored_from" not in config:
            return int(config["generation"])
    return None


def registry_name(home: Path, out: Path) -> str:
    """The registered model of a deploy config: one for each place."""
    return f"chamtune-{_kept(home, out).name}"


def roll_back(home: Path, out: Path) -> tuple[int, int, int]:
    """Bring back what the deployed config replaced: (new generation, the restored one, where that has its content)."""
    current = read_config(out)
    previous = current.get("previous_generation")
    path = _kept(home, out) / f"{previous}.yaml"
    if previous is None or not path.exists():
        raise UsageError(f"{out}: generation {current['generation']} replaced nothing that is kept in {home}")
    restored = read_config(path)
    del restored["generation"]
    origin = restored.get("content_from", previous)
    return _write(home, out, {**restored, "restored_from": previous, "content_from": origin}), previous, origin
