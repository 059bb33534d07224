"""A deployment that answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chamtune.asked import questions_of
from chamtune.dataset import Dataset
from personalization.data.records import Question
from personalization.deployment import Deployment
from personalization.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd


class Served:
    """An opened deployment. Threads may share it."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment

    @property
    def labels(self) -> tuple[str, ...]:
        """What it may answer."""
        return self.deployment.terms.labels

    def predict(self, asked: pd.DataFrame | Dataset | Sequence[Question]) -> pd.DataFrame:
        """A row a question: id, label, probability, prior, `p_*` by label.

        A table has a column `text`, and where known `id`, `user`, `date`, and `history`: a list of mappings with text,
        label and where known date, oldest first. DataError naming the first row that cannot be read.
        """
        import numpy as np
        import pandas as pd

        answers = self.deployment.predict(self._questions(asked))
        rows: list[dict[str, Any]] = []
        for answer in answers:
            probs = {f"p_{label}": float(np.exp(value)) for label, value in answer.log_probs.items()}
            first = {"id": answer.id, "label": answer.label, "probability": probs[f"p_{answer.label}"]}
            rows.append({**first, "prior": answer.prior_mode, **probs})
        columns = ["id", "label", "probability", "prior", *(f"p_{label}" for label in self.labels)]
        return pd.DataFrame(rows, columns=columns)

    def export(self, asked: pd.DataFrame | Dataset | Sequence[Question], out: str | Path) -> list[str]:
        """Write what other tools read of the chain for these users into a new folder; a line for each thing written.

        LoRA and prefixes in PEFT's format, steering vectors as safetensors and as control vectors (GGUF).
        """
        return self.deployment.export(self._questions(asked), Path(out))

    def _questions(self, asked: pd.DataFrame | Dataset | Sequence[Question]) -> Sequence[Question]:
        if isinstance(asked, Dataset):
            return asked.records.questions
        if hasattr(asked, "columns"):
            return questions_of(asked, self.deployment.terms)
        found = list(asked) if isinstance(asked, Iterable) else [asked]
        for number, one in enumerate(found, 1):
            if not isinstance(one, Question):
                kind = type(one).__name__
                raise UsageError(f"question {number} is a {kind}; give Questions, a Dataset, or a table with text")
        return found

    def __repr__(self) -> str:
        config = self.deployment.config
        return f"Served({config['task']}, generation {config.get('generation')}, {len(self.labels)} labels)"


def load(path: str | Path, model: str | Path | None = None) -> Served:
    """Open a deployment folder; `model`: where its model lies on this machine. DataError where it is damaged."""
    return Served(Deployment.load(path, model))
