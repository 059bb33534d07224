"""What a deploy config has to be: keys of the right kinds, numbers that are numbers, and what was tested as it was.

A promotion notes what was tested in `seal`, a hash for each part. Configs of earlier versions have none.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from personalization.errors import DataError

TESTED = ("task", "labels", "chain", "folder", "files")
"""Parts of a config that decide answers; where the model lies may be changed by hand."""


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)


class _Found(_Part):
    path: str
    device: str
    revision: str | None = None
    fingerprint: str


class _Model(_Found):
    dtype: str
    blocks: str | None
    chat: bool
    retriever: _Found | None = None


class _Entry(_Part):
    stage: str
    params: dict[str, Any]
    learned: dict[str, Any]


class _Config(_Part):
    generation: int = Field(ge=1)
    previous_generation: int | None = None
    previous_digest: str | None = None
    model: _Model
    task: str | dict[str, Any]
    labels: list[str] = Field(min_length=1)
    chain: list[_Entry] = Field(min_length=1)
    folder: str
    files: dict[str, str]
    provenance: dict[str, Any]
    seal: dict[str, str] = {}


def seal_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Part -> hash of what it says."""
    texts = {part: json.dumps(config[part], sort_keys=True) for part in TESTED}
    return {part: hashlib.sha256(text.encode()).hexdigest()[:16] for part, text in texts.items()}


def refuse_misshapen(place: Path, config: Mapping[str, Any]) -> None:
    """DataError naming the first key of another kind, or the first number of the chain that is none."""
    try:
        _Config.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise DataError(f"{place}: {key}: {first['msg']}; restore it, or promote again") from None
    for key, value in _numbers(config["chain"], "chain"):
        if not math.isfinite(value):
            raise DataError(f"{place}: {key} is {value}, and no number; restore it, or promote again")


def refuse_changed(place: Path, config: Mapping[str, Any]) -> None:
    """DataError naming the part that is not the one that was promoted."""
    now = seal_of(config)
    if changed := [part for part, seal in config.get("seal", {}).items() if now.get(part) != seal]:
        raise DataError(
            f"{place}: {', '.join(changed)} was changed after the promotion, and what stands there now was never "
            f"tested; `chamtune rollback {place.parent} --to {config['generation']}` restores it"
        )


def _numbers(value: Any, at: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield at, value
    elif isinstance(value, Mapping | list):
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _numbers(inner, f"{at}.{key}")
