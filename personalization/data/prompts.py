"""Prompts of the LaMP tasks that classify.

A prompt is `history + input + ANSWER_CUE`; each candidate continuation is a space, the label and a newline. The newline
is the terminator: without it "1" would score at least as high as "10". (For tokenizers that read no newline it is the
EOS token, see `personalization/backbones/encoding.py`.) History items are rendered as in the official
LaMP retrieval baseline and joined by " , and ".
"""

from __future__ import annotations

import re
from ast import literal_eval
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
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
_LISTED_BY = {"tags": "LaMP_2", "categories": "LaMP_2N"}
_LABEL_LIST = re.compile(r"\b(tags|categories): \[([^\]]*)\]")
_TITLES = re.compile(
    r'(?P<before>.*?\btitle ")(?P<title>.*)(?P<between>", which reference .*?\[1\]: ")(?P<first>.*)'
    r'(?P<and>"\s+\[2\]: ")(?P<second>.*)(?P<after>"\s*)',
    re.DOTALL,
)
"""LaMP-1's three titles, by what stands around them: a title may hold quotation marks."""

PROFILE_ITEM = {
    "LaMP_1": '"{text}"',
    "LaMP_2": 'the tag for the movie: "{text}" is "{label}"',
    "LaMP_2N": 'the category for the article: "{text}" is "{label}"',
    "LaMP_3": '{label} is the score for "{text}"',
}
"""task -> how one history item reads in a prompt."""


ASKED = {
    "LaMP_2": "Which tag does this movie relate to among the following tags? Just answer with the tag name without "
    "further explanation. tags: [{labels}] description: {text}",
    "LaMP_2N": "Which category does this article relate to among the following categories? Just answer with the "
    "category name without further explanation. categories: [{labels}] article: {text}",
    "LaMP_3": "What is the score of the following review on a scale of 1 to 5? just answer with 1, 2, 3, 4, or 5 "
    "without further explanation. review: {text}",
}
"""task -> how a question is asked, as the benchmark does."""


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


def listed_labels(text: str) -> tuple[str, tuple[str, ...]] | None:
    """(task, labels) of a prompt with a bracketed list of labels, which may be quoted; None without one."""
    match = _LABEL_LIST.search(text)
    if match is None:
        return None
    labels = [label.strip() for label in match[2].split(",")]
    if match[2].strip()[:1] in ("'", '"'):
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            labels = [str(label).strip() for label in literal_eval(f"[{match[2]}]")]
    return _LISTED_BY[match[1]], tuple(labels)


def has_form(task: str, text: str) -> bool:
    """Whether a prompt has its task's form: instruction, list of labels where there is one, item."""
    if task == "LaMP_1":
        return _TITLES.fullmatch(text) is not None
    stem, mark, _ = text.partition(_ITEM_MARK[task])
    if task == "LaMP_3":
        return bool(mark) and "score" in stem
    found = listed_labels(stem)
    return bool(mark) and found is not None and found[0] == task


def form_of(text: str) -> str | None:
    """The task whose form a prompt has, if it has one's."""
    return next((task for task in PROFILE_ITEM if has_form(task, text)), None)


def mismatch(task: str, labels: Sequence[str], text: str) -> str | None:
    """How a prompt differs from what a config for this task with these labels can answer; None where it does not.

    Its own list of labels must be that of the config, in whatever order. A prompt of no known form is taken.
    """
    own = has_form(task, text)
    if not own and (form := form_of(text)) is not None:
        return f"a question of {form}, but the config is for {task}"
    listed = listed_labels(question_frame(task, text) if own else text)
    if listed is not None and set(listed[1]) != set(labels):
        odd = sorted(set(listed[1]) ^ set(labels))
        return f"its label list differs from the config's in {', '.join(odd)}"
    return None


def usual(task: str, questions: Sequence[Question]) -> Question:
    """One of the questions whose prompt, but for the item, is the most frequent; of those that have the task's form.

    Where none has it, of all. There must be a question.
    """
    formed = [q for q in questions if has_form(task, q.text)] or questions
    frames = [question_frame(task, q.text) for q in formed]
    return formed[frames.index(Counter(frames).most_common(1)[0][0])]


def item_text(task: str, question: Question) -> str:
    """What is to be classified, without the instruction in front of it."""
    if task == "LaMP_1":
        return question.text
    _, mark, item = question.text.partition(_ITEM_MARK[task])
    return item.strip() if mark else question.text


def asked_text(task: str, question: Question) -> str:
    """The text that a history item has if it is the asked one: of LaMP-1 the title of the author's paper."""
    if task != "LaMP_1":
        return item_text(task, question).strip()
    match = _TITLES.fullmatch(question.text)
    return (match["title"] if match else question.text).strip()


def question_about(task: str, question: Question, item: str) -> str:
    """The question's text with `item` in the place of what is to be classified; the bare item where it has no form."""
    return _about(task, question.text, item)


def question_frame(task: str, text: str) -> str:
    """A question's text without what is to be classified; empty where it has no form."""
    return _about(task, text, "")


def _about(task: str, text: str, item: str) -> str:
    if task == "LaMP_1":
        match = _TITLES.fullmatch(text)
        return item if match is None else item.join(match.group("before", "between", "and", "after"))
    stem, mark, _ = text.partition(_ITEM_MARK[task])
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
