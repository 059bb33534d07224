"""What comes in and goes out over HTTP, and a question made of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator

from personalization.data.dates import read_date
from personalization.data.labels import Listed
from personalization.data.prompts import mismatch
from personalization.data.records import HistoryItem, Question
from personalization.data.values import wrong_text
from personalization.errors import DataError
from personalization.tasks import Terms

MOST_QUESTIONS, MOST_ITEMS, MOST_CHARS, MOST_NAME = 256, 10_000, 200_000, 256
"""Limits of a request: its questions, items of a history, characters of a text, characters of a name."""


def _readable(value: str) -> str:
    if (problem := wrong_text(value)) is not None:
        raise ValueError(problem)
    return value


Text = Annotated[str, Field(min_length=1, max_length=MOST_CHARS), AfterValidator(_readable)]
Name = Annotated[str, Field(min_length=1, max_length=MOST_NAME), AfterValidator(_readable)]
Date = Annotated[str | None, Field(max_length=64, description="in most spellings, such as 2026-11-28T10:00:00")]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("date", check_fields=False)
    @classmethod
    def _can_be_read(cls, value: str | None) -> str | None:
        if value is not None and read_date(value) is None:
            raise ValueError("not a date that can be trusted; write it as 2026-11-28T10:00:00")
        return value


class Item(_In):
    """An item of a user's past, with the label that it got."""

    text: Text
    label: Name | None = None
    date: Date = None
    more: dict[Name, Text] = Field({}, description="further fields that the task's wording names")


class Ask(_In):
    """One question. Without a history the one that is stored for the user is taken."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"text": "a bloody revenge", "user": "u7", "history": [{"text": "a duel", "label": "action"}]}]
        }
    )
    text: Text = Field(description="what is to be classified; or a whole question in the task's form")
    user: Name | None = Field(None, description="who asks; without one the question is its own user")
    id: Name | None = Field(None, description="comes back with the answer")
    date: Date = None
    history: list[Item] | None = Field(None, max_length=MOST_ITEMS, description="oldest first")


class Asks(_In):
    """Several questions, each answered by itself."""

    questions: list[Ask] = Field(min_length=1, max_length=MOST_QUESTIONS)


def _many(body: Any) -> str:
    return "many" if isinstance(body, Asks) or (isinstance(body, dict) and "questions" in body) else "one"


Body = Annotated[Annotated[Ask, Tag("one")] | Annotated[Asks, Tag("many")], Discriminator(_many)]
"""One question or several."""


class Answer(BaseModel):
    """The answer to one question."""

    id: str | None = Field(description="as it was asked")
    request: str = Field(description="what feedback names")
    label: str
    probability: float = Field(description="of the label")
    log_probs: dict[str, float] = Field(description="label -> natural log-probability")
    prior: str = Field(description="where the prior came from")
    generation: int
    arm: Literal["a", "b"] = Field(description="a: the deployment; b: the other config of a split")
    uncounted: int = Field(
        description="items of the history whose label is none of the labels, which count for nothing"
    )


class Answers(BaseModel):
    """In the order of the questions."""

    answers: list[Answer]


class Feedback(_In):
    """The label that was right for an answered question."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"request": "1-0-5f3a9c1e", "label": "action"}]})
    request: Annotated[str, Field(max_length=64, pattern=r"^[0-9a-f]{1,8}-[0-9a-f]{1,16}-[0-9a-f]{8}$")]
    label: Name


class Noted(BaseModel):
    """Feedback that lies on the disk."""

    request: str
    remembered: bool = Field(description="whether it is part of the user's stored history from now on")


class Refused(BaseModel):
    """Why a request was refused, in one line."""

    error: str


def question_of(ask: Ask, number: int, stored: tuple[HistoryItem, ...], terms: Terms) -> Question:
    """A question for a chain; DataError where it is of another task. `number` names it among those asked together."""
    task, labels = terms
    problem = mismatch(task, labels, ask.text)
    if problem is not None:
        raise DataError(problem)
    text = task.with_labels(labels).question(ask.text)
    history = stored if ask.history is None else items_of(ask.history, labels)
    return Question(str(number), ask.user or f"anonymous {number}", text, history, date=read_date(ask.date))


def items_of(items: list[Item], labels: Sequence[str]) -> tuple[HistoryItem, ...]:
    """History items as records; a label that is the same number as a listed one becomes it, as in files."""
    listed = Listed(labels)
    return tuple(
        HistoryItem(
            f"h{number}",
            item.text,
            None if item.label is None else listed.read(item.label),
            read_date(item.date),
            tuple(sorted(item.more.items())),
        )
        for number, item in enumerate(items)
    )


def uncounted(history: Sequence[HistoryItem], labels: Sequence[str]) -> int:
    """How many items have a label that is none of these."""
    known = {None, *labels}
    return sum(item.label not in known for item in history)
