"""One task: labels, and the wording of prompt, history item, answer, and of what an encoder and a chat model read.

Wordings are Jinja templates, rendered in its sandbox; a name that does not exist is an error. What they may name:

    text      what is to be classified         input     the question as it stands in the data
    history   the items in front, as one text  labels    the labels as they are spoken, a list
    label     the spoken label (in an item, in a reply)

and the groups of `form`, a regular expression for data whose questions come as a whole prompt, as LaMP's do; and in an
item the further fields that `fields.also` lists. Without a form a question is its text.
"""

from __future__ import annotations

import re
from ast import literal_eval
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache, cached_property
from types import SimpleNamespace
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from personalization.tasks.forms import REPLACED

_JINJA = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
ENDS = "\n"
"""What ends an answer unless a task says otherwise: without an end "1" would score at least as high as "10"."""
WORDED = ("prompt", "history", "answer", "chat", "encoder")
"""The parts of a task that another wording may replace."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Fields(_Part):
    """Names of a history item's fields in LaMP-like files."""

    text: str = "text"
    label: str | None = "label"
    also: tuple[str, ...] = Field((), description="further fields that a wording may name")

    @property
    def needed(self) -> tuple[str, ...]:
        """Those that every item has."""
        return (self.label, self.text) if self.label is not None else (self.text, *self.also)


class HistoryWording(_Part):
    """How the items in front of a question read."""

    item: str = "{{text}}\n{{label}}"
    before: str = ""
    join: str = "\n\n"
    after: str = "\n\n"


class AnswerWording(_Part):
    """What stands around a label that a causal model is asked for."""

    lead: str = " "
    end: str = ENDS


class ChatWording(_Part):
    """What a chat model is told and asked; its template adds the rest."""

    system: str | None = None
    user: str = "{{history}}{{input}}"
    reply: str = "{{label}}"


class EncoderWording(_Part):
    """The texts that a sentence encoder compares."""

    item: str = "{{text}}"
    label: str = "{{label}}"


class Task(_Part):
    """What is asked, of any model."""

    name: str = Field(min_length=1)
    official: str | None = Field(None, description="the name that a predictions file bears; by default the task's own")
    labels: dict[str, str] | None = Field(None, description="label -> how it is spoken, or a list; else the data's own")
    fields: Fields = Fields()
    ask: str = Field("{{text}}", description="a bare text as a question, in the form; other words belong into prompt")
    form: str | None = Field(
        None,
        description="how a whole question is laid out, as a regular expression; one that can match in many ways may "
        "take minutes on a hostile text",
    )
    prompt: str = "{{history}}{{input}}\nanswer:"
    history: HistoryWording = HistoryWording()
    answer: AnswerWording = AnswerWording()
    chat: ChatWording = ChatWording()
    encoder: EncoderWording = EncoderWording()
    query: str = Field("{{text}}", description="what a question's history is ranked by")
    document: str = Field("{{text}}", description="what of an item is ranked")
    wordings: dict[str, dict[str, Any]] = Field(
        default={}, description=f"other wordings by name, each with some of {', '.join(WORDED)}; a study may choose"
    )

    @field_validator("labels", mode="before")
    @classmethod
    def _spoken_as_themselves(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return {str(label): str(label) for label in value}
        return {str(label): str(said) for label, said in value.items()} if isinstance(value, Mapping) else value

    @field_validator("form")
    @classmethod
    def _a_pattern(cls, value: str | None) -> str | None:
        if value is not None:
            value = REPLACED.get(value, value)
            try:
                groups = re.compile(value).groupindex
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from None
            if "text" not in groups:
                raise ValueError("a form needs a group (?P<text>...): what is to be classified")
        return value

    @model_validator(mode="after")
    def _can_be_asked(self) -> Task:
        item = SimpleNamespace(text="text", label="label", more=[(name, "") for name in self.fields.also])
        for own in (self, *(self.worded(name) for name in self.wordings)):
            own.prompt_of("text", [item]), own.chat_of("text", [item]), own.encoded("text")
            own.query_of("text"), own.document_of(item)
        listing = self if self.labels is not None else self.with_labels(("one", "two"))
        if listing.item(listing.question("text")) != "text":
            raise ValueError("ask needs a form that finds the text again; or write its words into prompt")
        if self.labels is not None:
            self._labels_differ(self.labels)
        return self

    def _labels_differ(self, labels: Mapping[str, str]) -> None:
        if len(labels) < 2:
            raise ValueError("a task needs two labels or more")
        if empty := [label for label, said in labels.items() if not said.strip() or not label.strip()]:
            raise ValueError(f"label {empty[0]!r} is empty, or is spoken as nothing")
        said: dict[str, str] = {}
        for label, text in labels.items():
            if (other := said.setdefault(text, label)) != label:
                raise ValueError(f"labels {other!r} and {label!r} are both spoken as {text!r}")

    def __str__(self) -> str:
        return self.name

    def __hash__(self) -> int:
        return hash((self.name, self.form, self.prompt))

    def worded(self, name: str) -> Task:
        """The task in one of its other wordings; ValueError for one that it has not."""
        if name not in self.wordings:
            raise ValueError(f"task {self.name} has no wording {name!r}; it has {', '.join(self.wordings) or 'none'}")
        changes = self.wordings[name]
        if odd := set(changes) - set(WORDED):
            raise ValueError(f"wording {name!r} changes {min(odd)!r}; it may change {', '.join(WORDED)}")
        whole = {**self.model_dump(exclude={"wordings"}), **{k: _over(getattr(self, k), v) for k, v in changes.items()}}
        return Task.model_validate(whole)

    def with_labels(self, labels: Sequence[str]) -> Task:
        """The task with labels of its own, spoken as themselves where it does not say."""
        return self.model_copy(update={"labels": {label: self.spoken(label) for label in labels}})

    def question(self, text: str) -> str:
        """A bare text as a question, as it stands in the data; a question stays one."""
        if self._pattern is not None and self.has_form(text):
            return text
        return _render(self.ask, {"text": text, "labels": self._labels()})

    def _labels(self) -> list[str]:
        return [] if self.labels is None else list(self.labels.values())

    def spoken(self, label: str) -> str:
        """How a label is said."""
        return label if self.labels is None else self.labels.get(label, label)

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        return None if self.form is None else re.compile(self.form)

    def _match(self, text: str) -> re.Match[str] | None:
        return None if self._pattern is None else self._pattern.fullmatch(text)

    def has_form(self, text: str) -> bool:
        """Whether a question is laid out as the task's are; without a form every one is."""
        return self._pattern is None or self._match(text) is not None

    def item(self, text: str) -> str:
        """What is to be classified, of a question's text."""
        match = self._match(text)
        return text if match is None else match["text"].strip()

    def about(self, text: str, item: str) -> str:
        """The question's text with `item` in the place of what is to be classified; the bare item without a form."""
        match = self._match(text)
        if match is None:
            return item
        start, end = match.span("text")
        return f"{text[:start]}{item}{text[end:]}".rstrip()

    def frame(self, text: str) -> str:
        """A question's text without what is to be classified; empty where it has no form."""
        return "" if self._match(text) is None else self.about(text, "")

    def listed(self, text: str) -> tuple[str, ...] | None:
        """The labels that a question lists by itself; None where it lists none."""
        match = self._match(text)
        inner = None if match is None else match.groupdict().get("labels")
        return None if inner is None else labels_in(inner)

    def history_of(self, items: Sequence[Any]) -> str:
        """Items (with text and label) as the text that stands in front of a question; empty for none."""
        if not items:
            return ""
        own = self.history
        said = own.join.join(_render(own.item, self._of_item(item)) for item in items)
        return own.before + said + own.after

    def prompt_of(self, text: str, items: Sequence[Any] = ()) -> str:
        """What a causal model continues."""
        return _render(self.prompt, self._of_question(text, items))

    def chat_of(self, text: str, items: Sequence[Any] = ()) -> tuple[str | None, str]:
        """What a chat model is told, and what the user says."""
        values = self._of_question(text, items)
        system = None if self.chat.system is None else _render(self.chat.system, values)
        return system, _render(self.chat.user, values)

    def encoded(self, text: str) -> str:
        """What an encoder reads of a question."""
        return _render(self.encoder.item, self._of_question(text, ()))

    def query_of(self, text: str) -> str:
        """What the history of a question is ranked by."""
        return _render(self.query, self._of_question(text, ()))

    def document_of(self, item: Any) -> str:
        """What of an item is ranked."""
        return item.text if self.document == "{{text}}" else _render(self.document, self._of_item(item)).strip()

    def continuation(self, label: str) -> str:
        """What a causal model is asked to say for a label."""
        return f"{self.answer.lead}{self.spoken(label)}{self.answer.end}"

    def reply(self, label: str) -> str:
        """What a chat model is asked to reply for a label."""
        return _render(self.chat.reply, {"label": self.spoken(label)})

    def label_text(self, label: str) -> str:
        """What an encoder reads for a label."""
        return _render(self.encoder.label, {"label": self.spoken(label)})

    def _of_item(self, item: Any) -> dict[str, Any]:
        label = "" if item.label is None else self.spoken(item.label)
        return {**dict.fromkeys(self.fields.also, ""), **dict(item.more), "text": item.text, "label": label}

    def _of_question(self, text: str, items: Sequence[Any]) -> dict[str, Any]:
        match = self._match(text)
        groups = dict.fromkeys(self._pattern.groupindex, "") if self._pattern is not None else {}
        if match is not None:
            groups = {name: value or "" for name, value in match.groupdict().items()}
        own = {"input": text, "text": self.item(text), "history": self.history_of(items)}
        return {**groups, "labels": self._labels(), **own}


def labels_in(text: str) -> tuple[str, ...]:
    """The labels in a list with commas between them, which may be quoted."""
    if text.strip()[:1] in ("'", '"'):
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            return tuple(str(label).strip() for label in literal_eval(f"[{text}]"))
    return tuple(label.strip() for label in text.split(","))


def _over(part: Any, changes: Any) -> Any:
    return {**part.model_dump(), **changes} if isinstance(part, BaseModel) and isinstance(changes, Mapping) else changes


@cache
def _template(source: str) -> Template:
    return _JINJA.from_string(source)


def _render(source: str, values: Mapping[str, Any]) -> str:
    """A template with these values; ValueError where it is none, or names what there is not."""
    try:
        return _template(source).render(values)
    except TemplateError as error:
        names = ", ".join(sorted(values))
        raise ValueError(f"template {source!r:.80}: {error}; it may name {names}") from None
