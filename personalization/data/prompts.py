"""Questions as their task words them: which item one asks about, and which of them is usual."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from personalization.data.records import Question
from personalization.tasks import Task, listed_anywhere, of_form

CONTENT_FREE = ("N/A", "[MASK]", "")
"""Inputs that say nothing (Zhao et al. 2021, contextual calibration)."""


def asked_text(task: Task, question: Question) -> str:
    """The text that a history item has if it is the asked one: of LaMP-1 the title of the author's paper."""
    return task.item(question.text).strip()


def prompt_about(task: Task, question: Question, item: str) -> str:
    """The question's prompt with `item` in the place of what is to be classified."""
    return task.prompt_of(task.about(question.text, item))


def mismatch(task: Task, labels: Sequence[str], text: str) -> str | None:
    """How a question differs from what a config for this task with these labels can answer; None where it does not.

    Its own list of labels must be that of the config, in whatever order. A question of no known form is taken, and a
    task without a form takes all.
    """
    if task.form is None:
        return None
    own = task.has_form(text)
    other = None if own else of_form(text)
    if other is not None:
        return f"a question of {other}, but the config is for {task}"
    found = None if own else listed_anywhere(text)
    listed = task.listed(text) if found is None else found[1]
    if listed is not None and set(listed) != set(labels):
        return f"its label list differs from the config's in {', '.join(sorted(set(listed) ^ set(labels)))}"
    return None


def usual(task: Task, questions: Sequence[Question]) -> Question:
    """One of the questions whose text, but for the item, is the most frequent; of those that have the task's form.

    Where none has it, of all. There must be a question.
    """
    formed = [q for q in questions if task.has_form(q.text)] or questions
    frames = [task.frame(q.text) for q in formed]
    return formed[frames.index(Counter(frames).most_common(1)[0][0])]
