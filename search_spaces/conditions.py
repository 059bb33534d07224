"""When a parameter is read: written once in a space, used to leave out, to set to the baseline, and to tell a sampler.

`READ` of a space maps a parameter to alternatives, each a mapping from other parameters to what they must be: a tuple
of values, or a test. A parameter is read where one alternative holds; one that is not listed always is. Another stage's
parameter is named in full; a stage that is not in the chain has its baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Needed = tuple[Any, ...] | Callable[[Any], bool]
Read = Mapping[str, Sequence[Mapping[str, Needed]]]


@dataclass(frozen=True)
class Check:
    """A test of a value, and what it asks for in words."""

    words: str
    holds: Callable[[Any], bool]

    def __call__(self, value: Any) -> bool:
        return self.holds(value)


nonzero = Check("not 0", lambda value: bool(value != 0))
above_one = Check("above 1", lambda value: bool(value > 1))


def other_than(*values: Any) -> Check:
    """None of these."""
    return Check(f"not {_either(values)}", lambda value: value not in values)


def _either(values: Sequence[Any]) -> str:
    return " or ".join(str(value) or "empty" for value in values)


def in_words(needed: Needed) -> str:
    """What a condition asks for, as it is said of a parameter."""
    return (
        f"is {needed.words if isinstance(needed, Check) else _either(needed) if isinstance(needed, tuple) else needed}"
    )


def fits(value: Any, needed: Needed) -> bool:
    """Whether a value is what a condition asks for."""
    return needed(value) if callable(needed) else value in needed


def unlike(needed: Needed) -> Callable[[Any], bool]:
    """Whether a value is not what a condition asks for."""
    return lambda value: not fits(value, needed)


def is_read(alternatives: Sequence[Mapping[str, Needed]], value_of: Callable[[str], Any]) -> bool:
    """Whether one of the alternatives holds."""
    return any(all(fits(value_of(name), needed) for name, needed in one.items()) for one in alternatives)
