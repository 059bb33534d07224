"""Tables of pandas as rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from personalization.errors import UsageError


def rows_of(frame: Any, what: str = "table") -> Iterator[dict[str, Any]]:
    """The rows, keys being text; UsageError where it is no DataFrame, or two columns have one name."""
    names = columns_of(frame, what)
    return (dict(zip(names, row, strict=True)) for row in frame.itertuples(index=False, name=None))


def columns_of(frame: Any, what: str = "table") -> list[str]:
    """The names of the columns, as text; UsageError as for `rows_of`."""
    if not hasattr(frame, "itertuples"):
        raise UsageError(f"the {what} must be a pandas DataFrame, and is a {type(frame).__name__}")
    names = [str(name) for name in frame.columns]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"the {what} has {names.count(twice[0])} columns {twice[0]!r}; rename or drop all but one")
    return names
