"""Which deploy config stands at a place, told by its content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

HISTORY = ("generation", "previous_generation", "previous_digest", "restored_from", "content_from")
"""Keys that say how a config came to its place. A config that is brought back differs in nothing else."""


def config_digest(config: Mapping[str, Any]) -> str:
    """A digest of what a deploy config answers with and was promoted on, the same in every generation."""
    content = {key: value for key, value in config.items() if key not in HISTORY}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def standing_digest(out: Path) -> str | None:
    """The digest of the config that stands at `out`; None where nothing stands that can be read."""
    try:
        place = out / "deploy.yaml" if out.is_dir() else out
        config = yaml.safe_load(place.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return config_digest(config) if isinstance(config, dict) else None
