"""Prompts of the LaMP tasks that classify.

A prompt is `history + input + ANSWER_CUE`; each candidate continuation is a space, the label and a newline. The newline
is the terminator: without it "1" would score at least as high as "10". (For tokenizers that read no newline it is the
EOS token, see `personalization/backbones/encoding.py`.) History items are rendered as in the official
LaMP retrieval baseline and joined by " , and ".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from personalization.data.records import HistoryItem, Question

ANSWER_CUE = "\nanswer:"

TERMINATOR = "\n"

TEMPLATE = {"prompt": "{history}{input}" + ANSWER_CUE, "continuation": " {label}" + TERMINATOR}
"""How a causal model is asked, for the record in a deploy config."""
ENCODER_TEMPLATE = {"prompt": "{item}", "continuation": "{label}"}
"""How an encoder is asked; a study may search another text for the label."""

CONTENT_FREE = ("N/A", "[MASK]", "")
"""Inputs that say nothing (Zhao et al. 2021, contextual calibration)."""

_ITEM_MARK = {"LaMP_2": "description:", "LaMP_2N": "article:", "LaMP_3": "review:"}

PROFILE_ITEM = {
    "LaMP_1": '"{text}"',
    "LaMP_2": 'the tag for the movie: "{text}" is "{label}"',
    "LaMP_2N": 'the category for the article: "{text}" is "{label}"',
    "LaMP_3": '{label} is the score for "{text}"',
}
"""task -> how one history item reads in a prompt."""


def history_text(task: str, items: Sequence[HistoryItem]) -> str:
    """The given items as text to put in front of an input; empty for none."""
    if not items:
        return ""
    return " , and ".join(PROFILE_ITEM[task].format(text=item.text, label=item.label) for item in items) + ". "


def prompt(task: str, question: Question, history: Sequence[HistoryItem] = ()) -> str:
    """The prompt of a question, with these history items in front of it."""
    return history_text(task, history) + question.text + ANSWER_CUE


def continuations(labels: Sequence[str], template: str = TEMPLATE["continuation"]) -> list[str]:
    """The exact continuation string, or text, of each label."""
    return [template.replace("{label}", label) for label in labels]


def item_text(task: str, question: Question) -> str:
    """What is to be classified, without the instruction in front of it."""
    if task == "LaMP_1":
        return question.text
    _, mark, item = question.text.partition(_ITEM_MARK[task])
    return item.strip() if mark else question.text


def is_asked(task: str, question: Question, item: HistoryItem) -> bool:
    """Whether a history item is what the question asks about."""
    if task == "LaMP_1":
        return f'"{item.text}"' in question.text
    return item.text.strip() == item_text(task, question)


def question_about(task: str, question: Question, item: str) -> str:
    """The question's text with `item` in the place of what is to be classified."""
    if task == "LaMP_1":
        return re.sub(r'"[^"]*"', lambda _: f'"{item}"', question.text)
    stem, mark, _ = question.text.partition(_ITEM_MARK[task])
    return f"{stem}{mark} {item}".rstrip() if mark else item


def prompt_about(task: str, question: Question, item: str) -> str:
    """The question's prompt with `item` in the place of what is to be classified."""
    return question_about(task, question, item) + ANSWER_CUE


class Wording(NamedTuple):
    """How a kind of backbone is asked. `about(task, question, item)`: with `item` in the place of what is asked."""

    template: dict[str, str]
    prompt: Callable[..., str]
    about: Callable[[str, Question, str], str]


WORDINGS = {
    "causal": Wording(TEMPLATE, prompt, prompt_about),
    "encoder": Wording(ENCODER_TEMPLATE, item_text, lambda _task, _question, item: item),
}
"""kind of backbone -> wording."""
