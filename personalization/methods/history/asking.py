"""How a question becomes a prompt: which of the user's items stand in front of it, and how labels are spoken.

k items, the most relevant first (`ranking`). Where a prompt does not fit the model, each item is cut to its share of
the room. An encoder is asked with the bare text, and the text of a label may be another one. Cost: the ranking's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from personalization.data.prompts import WORDINGS, continuations, prompt
from personalization.data.records import Dataset, HistoryItem
from personalization.methods.history.ranking import Histories


@dataclass(frozen=True)
class Asking:
    """`k` items by `ranking` (with `mix`) in front of a causal model's question; an encoder's label `template`."""

    k: int = 0
    ranking: str = "recency"
    mix: float = 0.0
    template: str = "{label}"

    def ranked(self, scorer: Any, dataset: Dataset, count: int) -> list[list[HistoryItem]]:
        """So many items of each question's history, the most relevant first."""
        return Histories(scorer, dataset).top(self.ranking, self.mix, count)

    def prompts(self, scorer: Any, dataset: Dataset) -> tuple[list[str], int]:
        """The prompt of each question, and how many have items that were cut to fit the model."""
        if not self.k or scorer.kind == "encoder" or not dataset.questions:
            return [WORDINGS[scorer.kind].prompt(dataset.task, q) for q in dataset.questions], 0
        return self.with_items(scorer, dataset, self.ranked(scorer, dataset, self.k))

    def with_items(
        self, scorer: Any, dataset: Dataset, chosen: Sequence[Sequence[HistoryItem]]
    ) -> tuple[list[str], int]:
        """Prompts with these items, each cut to its share of the room where they do not fit; and how many did not."""
        task, spoken = dataset.task, self.spoken(scorer, dataset.labels)
        whole = [prompt(task, q, items) for q, items in zip(dataset.questions, chosen, strict=True)]
        rows = scorer.too_long(whole, spoken)
        for row in rows:
            question, items = dataset.questions[row], chosen[row]
            texts = scorer.shortened(prompt(task, question), [item.text for item in items], spoken)
            cut = [replace(item, text=text) for item, text in zip(items, texts, strict=True)]
            whole[row] = prompt(task, question, cut)
        return whole, len(rows)

    def spoken(self, scorer: Any, labels: Sequence[str]) -> list[str]:
        """The text of each label, as this kind of model is asked."""
        encoder = scorer.kind == "encoder"
        return continuations(labels, self.template if encoder else WORDINGS[scorer.kind].template["continuation"])

    def about(self, scorer: Any, dataset: Dataset, question: Any, texts: Sequence[str]) -> list[str]:
        """Prompts with each of these texts in the place of what a question asks about, without items."""
        about = WORDINGS[scorer.kind].about
        return [about(dataset.task, question, text) for text in texts]
