"""What a spec may say in the place of a parameter's distribution: a value, a list of choices, or a range."""

from __future__ import annotations

import re
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

Override = float | int | str | list[Any] | dict[str, Any]


def replaced(original: BaseDistribution, override: Override, pattern: str | None) -> BaseDistribution:
    """The distribution that a spec asks for; ValueError, TypeError or KeyError where it does not fit the original.

    `pattern`: of further choices.
    """
    choices: list[Any] = override if isinstance(override, list) else [override]
    if isinstance(original, CategoricalDistribution):
        wrong = [c for c in choices if c not in original.choices and not (pattern and re.fullmatch(pattern, str(c)))]
        if isinstance(override, dict) or not choices or wrong:
            raise ValueError(f"allowed are {', '.join(map(str, original.choices))}")
        return CategoricalDistribution(choices)
    number = int if isinstance(original, IntDistribution) else float
    if isinstance(override, dict):
        unknown = sorted(set(override) - {"low", "high", "log", "step"})
        if unknown:
            raise ValueError(f"unknown key {unknown[0]!r}; allowed are low, high, log, step")
        kind = type(original)
        if not isinstance(original, IntDistribution | FloatDistribution):
            raise TypeError("not a range")
        log = bool(override.get("log", original.log and "step" not in override))
        step = override.get("step")
        step = {"step": number(step)} if step is not None else {}
        return kind(number(override["low"]), number(override["high"]), log=log, **step)  # type: ignore[call-arg]
    if any(isinstance(c, bool | str) for c in choices) or not choices:
        raise TypeError("must be a number or numbers")
    return CategoricalDistribution([number(c) for c in choices])
