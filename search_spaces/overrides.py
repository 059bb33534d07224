"""What a spec may say in the place of a parameter's distribution: a value, a list of choices, or a range."""

from __future__ import annotations

import logging
import math
import re
import warnings
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

logger = logging.getLogger(__name__)

Override = float | int | str | list[Any] | dict[str, Any]


def replaced(
    original: BaseDistribution, override: Override, pattern: str | None, most: float | None
) -> BaseDistribution:
    """The distribution that a spec asks for; ValueError or TypeError where it does not fit the original.

    `pattern`: of further choices. `most`: the largest number that means something.
    """
    choices: list[Any] = override if isinstance(override, list) else [override]
    if isinstance(original, CategoricalDistribution):
        wrong = [c for c in choices if c not in original.choices and not (pattern and re.fullmatch(pattern, str(c)))]
        if isinstance(override, dict) or not choices or wrong:
            raise ValueError(f"allowed are {', '.join(map(str, original.choices))}")
        return CategoricalDistribution(choices)

    def number(value: Any) -> Any:
        return _meant(original, value, most)

    if isinstance(override, dict):
        unknown = sorted(set(override) - {"low", "high", "log", "step"})
        if unknown:
            raise ValueError(f"unknown key {unknown[0]!r}; allowed are low, high, log, step")
        kind = type(original)
        if not isinstance(original, IntDistribution | FloatDistribution):
            raise TypeError("not a range")
        if missing := sorted({"low", "high"} - set(override)):
            raise ValueError(f"a range has low and high, and {' and '.join(missing)} is missing")
        log = bool(override.get("log", original.log and "step" not in override))
        low, high, step = number(override["low"]), number(override["high"]), override.get("step")
        if step is None:
            return kind(low, high, log=log)  # type: ignore[call-arg]
        return _stepped(kind, low, high, log, type(original.low)(step))
    if not choices:
        raise ValueError("must be a number or numbers")
    return CategoricalDistribution([number(c) for c in choices])


def _stepped(kind: Any, low: Any, high: Any, log: bool, step: Any) -> BaseDistribution:
    """A range in steps, of which there is at least one; it is said where the last one ends below `high`."""
    if step > high - low:
        raise ValueError(f"a step of {step:g} leads beyond the range from {low:g} to {high:g}")
    with warnings.catch_warnings(action="ignore"):
        made: FloatDistribution | IntDistribution = kind(low, high, log=log, step=step)
    if made.high != high:
        logger.warning("space: steps of %g from %g end below %g, at %g", step, low, high, made.high)
    return made


def _meant(original: Any, value: Any, most: float | None) -> Any:
    """A number that the parameter may be: where none below 0 is searched, none below 0 means anything."""
    if isinstance(value, bool | str) or not math.isfinite(value):
        raise TypeError(f"must be a number or numbers, and {value!r} is none")
    if isinstance(original, IntDistribution) and value != int(value):
        raise ValueError(f"must be a whole number, and {value!r} is none")
    found = type(original.low)(value)
    least = min(original.low, 1) if isinstance(original, IntDistribution) else 0.0
    if original.log and found <= 0:
        raise ValueError(f"must be above 0, and {value!r} is not")
    if original.low >= 0 and found < least:
        raise ValueError(f"must be {least:g} or more, and {value!r} is less")
    if most is not None and found > most:
        raise ValueError(f"must be {most:g} or less, and {value!r} is more")
    return found
