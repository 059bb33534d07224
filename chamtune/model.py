"""A model that scores labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from personalization.backbones.cached import CachedScorer
from personalization.data.records import Dataset
from personalization.methods.history.asking import Asking, asked
from personalization.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd


class Model:
    """A causal language model or a sentence encoder.

    `path`: demo, demo-null, minilm, smollm2, a folder, a GGUF file, or a hub id; `dtype`: float32, bfloat16 or float16;
    `device`: auto, cpu, cuda or cuda:N; `chat`: ask by the model's chat template; `revision` of a hub model; `blocks`:
    path of the list of its blocks, where its length does not tell it; `retriever`: a sentence encoder that finds
    similar items for a causal model. Loaded on first use.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        dtype: str = "float32",
        device: str = "auto",
        chat: bool = False,
        revision: str | None = None,
        blocks: str | None = None,
        retriever: str | Path | None = None,
    ) -> None:
        self.spec: dict[str, Any] = {
            "path": str(path),
            "dtype": dtype,
            "device": device,
            "chat": chat,
            "revision": revision,
            "blocks": blocks,
            "retriever": None if retriever is None else str(retriever),
        }
        self._scorer = CachedScorer(str(path), None, dtype, device, blocks, chat, revision)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the model's files."""
        return self._scorer.fingerprint

    @property
    def kind(self) -> str:
        """causal or encoder."""
        return self._scorer.kind

    def score(self, prompts: Sequence[str], labels: Sequence[str]) -> pd.DataFrame:
        """Natural-log probability of each label after, or for, each prompt: a row a prompt, a column a label.

        A causal model is asked for " label" and the end of the line, exactly, a chat model to reply with the label and
        end its turn; an encoder's rows sum to one over labels.
        """
        import pandas as pd

        plain, scorer = Task(name="score", prompt="{{input}}"), self._scorer
        spoken = Asking().spoken(scorer, Dataset(plain, tuple(labels), ()))
        read = [asked(scorer, plain, prompt) for prompt in prompts]
        return pd.DataFrame(scorer.label_logprobs(read, spoken), index=list(prompts), columns=list(labels))

    def __repr__(self) -> str:
        return f"Model({self.spec['path']!r})"
