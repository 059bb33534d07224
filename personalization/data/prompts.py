"""Questions as their task words them: what is asked about, and the prompts for every kind of model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from personalization.data.records import HistoryItem, Question
from personalization.tasks import Task, listed_anywhere, of_form

CONTENT_FREE = ("N/A", "[MASK]", "")
"""Inputs that say nothing (Zhao et al. 2021, contextual calibration)."""


def prompt(task: Task, question: Question, history: Sequence[HistoryItem] = ()) -> str:
    """What a causal model continues, with these history items in front of the question."""
    return task.prompt_of(question.text, history)


def history_text(task: Task, items: Sequence[HistoryItem]) -> str:
    """The given items as text to put in front of an input; empty for none."""
    return task.history_of(items)


def item_text(task: Task, question: Question) -> str:
    """What is to be classified, without the instruction in front of it."""
    return task.item(question.text)


def asked_text(task: Task, question: Question) -> str:
    """The text that a history item has if it is the asked one: of LaMP-1 the title of the author's paper."""
    return task.item(question.text).strip()


def question_about(task: Task, question: Question, item: str) -> str:
    """The question's text with `item` in the place of what is to be classified; the bare item where it has no form."""
    return task.about(question.text, item)


def question_frame(task: Task, text: str) -> str:
    """A question's text without what is to be classified; empty where it has no form."""
    return task.frame(text)


def prompt_about(task: Task, question: Question, item: str) -> str:
    """The question's prompt with `item` in the place of what is to be classified."""
    return task.prompt_of(task.about(question.text, item))


def continuations(task: Task, labels: Sequence[str]) -> list[str]:
    """What a causal model is asked to say, exactly, for each label."""
    return [task.continuation(label) for label in labels]


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
