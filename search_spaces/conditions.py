"""When a parameter is read: written once in a space, used to leave out, to set to the baseline, and to tell a sampler.

`READ` of a space maps a parameter to alternatives, each a mapping from other parameters to what they must be: a tuple
of values, or a test. A parameter is read where one alternative holds; one that is not listed always is. Another stage's
parameter is named in full; a stage that is not in the chain has its baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Needed = tuple[Any, ...] | Callable[[Any], bool]
Read = Mapping[str, Sequence[Mapping[str, Needed]]]


def nonzero(value: Any) -> bool:
    """Not 0."""
    return bool(value != 0)


def above_one(value: Any) -> bool:
    """More than 1."""
    return bool(value > 1)


def other_than(*values: Any) -> Callable[[Any], bool]:
    """None of these."""
    return lambda value: value not in values


def fits(value: Any, needed: Needed) -> bool:
    """Whether a value is what a condition asks for."""
    return needed(value) if callable(needed) else value in needed


def is_read(alternatives: Sequence[Mapping[str, Needed]], value_of: Callable[[str], Any]) -> bool:
    """Whether one of the alternatives holds."""
    return any(all(fits(value_of(name), needed) for name, needed in one.items()) for one in alternatives)
