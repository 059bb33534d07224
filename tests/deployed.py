"""Deployment folders, written without a promotion."""

from __future__ import annotations

from pathlib import Path

import yaml

from personalization.backbones.cached import CachedScorer
from personalization.deployment import CONFIG, FORMAT, write_files
from personalization.files import write_atomic
from personalization.stages.chain import Fitted


def write_deployed(folder: Path, fitted: Fitted, scorer: CachedScorer, **changes: object) -> Path:
    """Save a fitted chain as a deployment of the scorer's model; `changes`: keys of the config, task and labels too."""
    model = {"path": scorer.model, "dtype": "float32", "device": "auto", "blocks": None, "chat": False}
    config = {
        "format": FORMAT,
        "generation": 1,
        "model": {**model, "fingerprint": scorer.fingerprint},
        **write_files(fitted, folder),
        "provenance": {},
        **changes,
    }
    write_atomic(folder / CONFIG, yaml.safe_dump(config))
    return folder
