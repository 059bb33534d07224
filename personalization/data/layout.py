"""How LaMP's files lay out the tasks that classify: fields, labels, names."""

from __future__ import annotations

from typing import NamedTuple

TASK_FIELDS = {
    "LaMP_1": ("title", "abstract"),
    "LaMP_2": ("tag", "description"),
    "LaMP_2N": ("category", "text"),
    "LaMP_3": ("score", "text"),
}
"""task -> the fields of a history item that tell it from the others."""

TEXT_FIELD = {"LaMP_1": "title", "LaMP_2": "description", "LaMP_2N": "text", "LaMP_3": "text"}
LABEL_FIELD = {"LaMP_1": None, "LaMP_2": "tag", "LaMP_2N": "category", "LaMP_3": "score"}
FIXED_LABELS = {"LaMP_1": ("[1]", "[2]"), "LaMP_3": ("1", "2", "3", "4", "5")}


def official(task: str) -> str:
    """The task's name in the benchmark, which knows movies and news by one."""
    return "LaMP_2" if task == "LaMP_2N" else task


class Terms(NamedTuple):
    """The task and labels that questions must have, where they are known before."""

    task: str
    labels: tuple[str, ...]
