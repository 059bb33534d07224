"""What a study may be called: its name is also that of folders, and of one study that is nobody's."""

from __future__ import annotations

import re

from personalization.errors import UsageError

ALLOWED = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
LOOKS = "chamtune.looks"
"""The study that holds the evidence of all others in its storage."""


def study_name(name: str) -> str:
    """The name; UsageError where no study may be called so."""
    if re.fullmatch(ALLOWED, name) is None:
        raise UsageError(
            f"no study can be called {name!r}; allowed are 1 to 100 letters (A-Z, a-z), digits, '.', '_' and '-', the "
            "first a letter or digit"
        )
    if name.lower() == LOOKS:
        raise UsageError(f"no study can be called {name!r}, where the evidence of all studies is kept")
    return name
