"""Tasks: what is asked and how, a YAML file each. Those of LaMP that classify come with the package.

A user's own task is such a file, too (`task: mine.yaml` in a spec); it needs no line of Python.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from personalization.errors import UsageError
from personalization.mappings import read_mapping
from personalization.tasks.task import Task, labels_in

__all__ = ["TASKS", "Task", "Terms", "listed_anywhere", "load_task", "of_form", "task"]

FOLDER = Path(__file__).parent
TASKS = tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))
"""Names of the tasks that come with the package."""
_LISTED_BY = {"tags": "LaMP_2", "categories": "LaMP_2N"}
_LABEL_LIST = re.compile(r"(?>[\s\S]*?\b(tags|categories): \[)([^\]]*)\]")


class Terms(NamedTuple):
    """The task and labels that questions must have, where they are known before."""

    task: Task
    labels: tuple[str, ...]


@cache
def task(name: str) -> Task:
    """One of `TASKS`; UsageError for another name."""
    if name not in TASKS:
        raise UsageError(f"task {name!r} is not known; known are {', '.join(TASKS)}, or give a YAML file")
    return _read(FOLDER / f"{name}.yaml")


def load_task(given: str | Mapping[str, Any] | Task) -> Task:
    """The task of a name, a YAML file or a mapping; UsageError saying what is wrong with it."""
    if isinstance(given, Task):
        return given
    if isinstance(given, Mapping):
        return _checked(given, "task")
    if not isinstance(given, str):
        raise UsageError(f"a task is a name, a YAML file or a mapping, but this is a {type(given).__name__}")
    return _read(Path(given)) if Path(given).is_file() else task(given)


def of_form(text: str) -> Task | None:
    """The task whose layout an input has, if it has one's."""
    return next((known for known in map(task, TASKS) if known.form is not None and known.has_form(text)), None)


def listed_anywhere(text: str) -> tuple[Task, tuple[str, ...]] | None:
    """(task, labels) of an input with a bracketed list of LaMP-2's labels, whatever else is in it; None without one."""
    found = _LABEL_LIST.match(text)
    return None if found is None else (task(_LISTED_BY[found[1]]), labels_in(found[2]))


def _read(path: Path) -> Task:
    return _checked(read_mapping(path, "a task"), str(path))


def _checked(raw: Mapping[str, Any], source: str) -> Task:
    try:
        return Task.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "task"
        allowed = f"; allowed are {', '.join(Task.model_fields)}" if first["type"] == "extra_forbidden" else ""
        raise UsageError(f"{source}: {key}: {first['msg'].removeprefix('Value error, ')}{allowed}") from None
