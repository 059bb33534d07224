"""Which answer a text is: equal numbers are one label, other case is not."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBER = re.compile(r"\s*[+-]?\d+(\.\d*)?\s*")


class Listed:
    """The labels of a task, as its prompts list them."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels, self._known = tuple(labels), frozenset(labels)
        self._numbers = {float(label): label for label in reversed(labels) if _NUMBER.fullmatch(label)}
        self._folded = {label.casefold(): label for label in labels}

    def __contains__(self, text: str | None) -> bool:
        return text in self._known

    def read(self, text: str) -> str:
        """The listed label that is the same text or the same number; otherwise the text itself."""
        if text in self._known or not self._numbers or not _NUMBER.fullmatch(text):
            return text
        return self._numbers.get(float(text), text)

    def in_other_case(self, text: str) -> str | None:
        """The label that differs from a text in case, or in space around it, alone."""
        return None if text in self._known else self._folded.get(text.strip().casefold())
