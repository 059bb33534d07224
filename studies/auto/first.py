"""What an arm tries first: settings that won in our own studies, in `first.yaml`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from studies.recovery import POINT, enqueue
from studies.study import OpenStudy

LIST = Path(__file__).with_name("first.yaml")


@cache
def listed() -> dict[str, dict[str, list[dict[str, Any]]]]:
    """arm -> kind of model -> settings by full name."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = yaml.safe_load(LIST.read_text(encoding="utf-8"))
    return found


def queue_first(opened: OpenStudy, arm: str, kind: str) -> None:
    """Queue the settings of an arm, each once; what they leave open is the sampler's."""
    known = [trial.user_attrs.get(POINT) for trial in opened.study.get_trials(deepcopy=False)]
    searched = {known.targets[0]: name for name, known in opened.rooms.names.items()}
    for settings in listed().get(arm, {}).get(kind, []):
        point = {searched[full]: value for full, value in settings.items()}
        if point not in known:
            enqueue(opened.study, point)
