"""How a question becomes what a model reads: which of the user's items stand in front, and how labels are spoken.

k items, the most relevant first (`ranking`), in the task's wording, or another of its `wordings`. A chat model is asked
by its template, and for the reply with the template's end of turn. A prompt that does not fit the model loses history
first: each item is cut to its share of the room, then all are left out; then the end of the asked item. What still does
not fit is refused; instruction, labels and template are never cut. An encoder is asked with the bare text, and the text
of a label may be another one. Cost: the ranking's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from personalization.data.records import Dataset, HistoryItem, Question
from personalization.errors import DataError
from personalization.methods.history.ranking import Histories
from personalization.tasks import Task

OWN = "own"
"""The wording that a task has without saying so."""


@dataclass(frozen=True)
class Asking:
    """`k` items by `ranking` (with `mix`) in front of a causal model's question; an encoder's label `template`."""

    k: int = 0
    ranking: str = "recency"
    mix: float = 0.0
    template: str = "{label}"
    wording: str = OWN

    def worded(self, dataset: Dataset) -> Dataset:
        """The data set in this wording of its task; DataError where the task has none of that name."""
        if self.wording == OWN:
            return dataset
        try:
            return replace(dataset, task=dataset.task.worded(self.wording))
        except ValueError as error:
            raise DataError(f"prompt.wording: {error}") from None

    def ranked(self, scorer: Any, dataset: Dataset, count: int) -> list[list[HistoryItem]]:
        """So many items of each question's history, the most relevant first."""
        return Histories(scorer, dataset).top(self.ranking, self.mix, count)

    def prompts(self, scorer: Any, dataset: Dataset) -> tuple[list[str], int]:
        """The prompt of each question, and how many were cut to fit the model."""
        if not dataset.questions:
            return [], 0
        if scorer.kind == "encoder":
            return [dataset.task.encoded(q.text) for q in dataset.questions], 0
        chosen = self.ranked(scorer, dataset, self.k) if self.k else [[]] * len(dataset)
        return self.with_items(scorer, dataset, chosen)

    def with_items(
        self, scorer: Any, dataset: Dataset, chosen: Sequence[Sequence[HistoryItem]]
    ) -> tuple[list[str], int]:
        """Prompts with these items, cut where they do not fit; and how many were."""
        task, spoken = dataset.task, self.spoken(scorer, dataset)
        whole = [asked(scorer, task, q.text, items) for q, items in zip(dataset.questions, chosen, strict=True)]
        rows = scorer.too_long(whole, spoken)
        ends = 0
        for row in rows:
            found = _with_less_history(scorer, task, spoken, dataset.questions[row], chosen[row])
            whole[row] = _without_its_end(scorer, task, spoken, dataset.questions[row]) if found is None else found
            ends += found is None
        if ends:
            scorer.note_cut(whole, ends)
        return whole, len(rows)

    def spoken(self, scorer: Any, dataset: Dataset) -> list[str]:
        """The text of each label, as this kind of model is asked."""
        task = dataset.task
        if scorer.kind == "encoder":
            return [self.template.replace("{label}", task.label_text(label)) for label in dataset.labels]
        if scorer.chat:
            return [task.reply(label) + scorer.end_of_turn for label in dataset.labels]
        return [task.continuation(label) for label in dataset.labels]

    def about(self, scorer: Any, dataset: Dataset, question: Question, texts: Sequence[str]) -> list[str]:
        """Prompts with each of these texts in the place of what a question asks about, without items."""
        return [asked(scorer, dataset.task, dataset.task.about(question.text, text)) for text in texts]


def asked(scorer: Any, task: Task, text: str, items: Sequence[HistoryItem] = ()) -> str:
    """A question's text, behind these items, as this kind of model reads it."""
    if scorer.kind == "encoder":
        return task.encoded(text)
    if scorer.chat:
        said: str = scorer.conversation(*task.chat_of(text, items))
        return said
    return task.prompt_of(text, items)


def _with_less_history(
    scorer: Any, task: Task, spoken: Sequence[str], question: Question, items: Sequence[HistoryItem]
) -> str | None:
    """The prompt with each item cut to its share of the room, or without any; None where even that does not fit."""
    bare = asked(scorer, task, question.text)
    if scorer.too_long([bare], spoken):
        return None
    texts = scorer.shortened(bare, [item.text for item in items], spoken)
    cut = [replace(item, text=text) for item, text in zip(items, texts, strict=True) if text]
    found = asked(scorer, task, question.text, cut)
    return bare if scorer.too_long([found], spoken) else found


def _without_its_end(scorer: Any, task: Task, spoken: Sequence[str], question: Question) -> str:
    """The prompt with the asked item cut at its end; DataError where what must stand does not fit."""
    frame = asked(scorer, task, task.about(question.text, ""))
    text = scorer.shortened(frame, [task.item(question.text)], spoken)[0]
    found = asked(scorer, task, task.about(question.text, text))
    if scorer.too_long([found], spoken):
        raise DataError(
            f"question {question.id}: instruction, labels and template alone do not fit the model's context; "
            "shorten the task's wording, or take a model with a longer one"
        )
    return found
