"""What is said of a data set that can be used: what of it counts for nothing, and how much that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from personalization.data.labels import Listed
from personalization.data.prompts import asked_text
from personalization.data.records import Question
from personalization.tasks import Task

Note = tuple[Question, str, str]
"""The first question concerned, the field, the problem."""
SHOWN = 5


def notes(task: Task, labels: Listed, questions: Sequence[Question]) -> Iterator[Note]:
    """Every note on the questions of a data set, one a kind."""
    yield from _uncounted_labels(labels, questions)
    yield from _undated(questions)
    texts: dict[int, set[str]] = {}

    def own(question: Question) -> bool:
        history = question.history
        if id(history) not in texts:
            texts[id(history)] = {item.text.strip() for item in history}
        return asked_text(task, question) in texts[id(history)]

    def later(question: Question) -> bool:
        now = question.date
        return now is not None and any(item.date is not None and item.date > now for item in question.history)

    kinds: list[tuple[Callable[[Question], bool], str, str]] = [
        (lambda q: not q.history, "profile", "have no history; they are answered with the prior of all users"),
        (own, "profile", "have their own item in the history; it is left out"),
        (later, "profile", "have history items later than their own date; these are left out"),
        (
            lambda q: not task.has_form(q.text),
            "input",
            f"have not the form of a {task} prompt: each is taken as it stands, and what is learned from the form of "
            "prompts leaves it out",
        ),
    ]
    for applies, field, problem in kinds:
        found = [question for question in questions if applies(question)]
        if found:
            yield found[0], field, f"{_of(len(found), len(questions), 'questions')} {problem}"


def _uncounted_labels(labels: Listed, questions: Sequence[Question]) -> Iterator[Note]:
    unknown, of_nothing, total, first = Counter[str](), set[int](), 0, None
    for question in _once(questions):
        own = [item.label for item in question.history if item.label is not None]
        odd = [label for label in own if label not in labels]
        total += len(own)
        unknown.update(odd)
        first = first or (question if odd else None)
        if odd and len(odd) == len(own):
            of_nothing.add(id(question.history))
    if first is None:
        return
    shown = ", ".join(map(repr, [label for label, _ in unknown.most_common(SHOWN)]))
    more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
    if unknown.total() == total:
        said = f"NONE of the {total} history labels is among the labels, so nothing is known of any user: {shown}{more}"
    else:
        share = _of(unknown.total(), total, "history labels")
        said = f"{share} are not among the labels and count for nothing: {shown}{more}"
        if idle := sum(id(question.history) in of_nothing for question in questions):
            said += f"; nothing counts in the history of {_of(idle, len(questions), 'questions')}"
    meant = {label: labels.in_other_case(label) for label in unknown}
    if cased := next(((label, listed) for label, listed in meant.items() if listed is not None), None):
        said += f"; {cased[0]!r} differs from {cased[1]!r} in case or space alone: write it so"
    yield first, "profile", f"{said}; the labels are {', '.join(labels.labels)}"


def _undated(questions: Sequence[Question]) -> Iterator[Note]:
    first, undated, total = None, 0, 0
    for question in _once(questions):
        missing = sum(item.date is None for item in question.history)
        if 0 < missing < len(question.history):
            first, undated, total = first or question, undated + missing, total + len(question.history)
    if first is not None:
        share = _of(undated, total, "items")
        yield first, "profile", f"{share} of histories with dates have none; they are taken for the oldest"


def _once(questions: Sequence[Question]) -> list[Question]:
    """One question of each history."""
    first: dict[int, Question] = {}
    for question in questions:
        first.setdefault(id(question.history), question)
    return list(first.values())


def _of(part: int, whole: int, what: str) -> str:
    return f"{part} of {whole} {what} ({100 * part / whole:.3g} %)"
