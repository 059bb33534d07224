"""What may vary: names, ranges, decoding. No torch, no model.

A space module holds `SPACE` (name -> Optuna distribution; static), a frozen `Params`, `BASELINE` (the parameters that
change nothing), `decode(raw) -> Params` and `complexity(params)` (how far from doing nothing; smaller is simpler), and
where wanted `OPEN` (parameter -> the pattern of further choices that a spec may give), `ONLY` (parameter, or
parameter=choice -> the one kind of backbone that reads it) and `READ_WITH` (parameter -> the choices of others beside
which it is read).
To add one: write the file, list it in `SPACES`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from importlib import import_module
from typing import Any, Protocol

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

SPACES = {
    "calibration": "search_spaces.calibration",
    "report_calibration": "search_spaces.report_calibration",
    "steering": "search_spaces.steering",
    "retrieval": "search_spaces.retrieval",
    "adapter": "search_spaces.adapter",
}
"""objective name -> module of its search space."""

Override = float | int | str | list[Any] | dict[str, Any]


class Space(Protocol):
    """What every space module offers."""

    SPACE: Mapping[str, BaseDistribution]
    BASELINE: Any

    def decode(self, raw: Mapping[str, Any]) -> Any: ...

    def complexity(self, params: Any) -> float: ...


def load_space(name: str) -> Space:
    """The space module of an objective."""
    module: Any = import_module(SPACES[name])
    return module  # type: ignore[no-any-return]


def parameters(space: Space, kind: str) -> dict[str, BaseDistribution]:
    """The parameters that a kind of backbone reads. A module's `ONLY` names those of one kind alone."""
    only: Mapping[str, str] = getattr(space, "ONLY", {})
    kept = {name: found for name, found in space.SPACE.items() if only.get(name, kind) == kind}
    for name, found in kept.items():
        if isinstance(found, CategoricalDistribution):
            choices = [choice for choice in found.choices if only.get(f"{name}={choice}", kind) == kind]
            kept[name] = CategoricalDistribution(choices)
    return kept


def needed(space: Space, chosen: Mapping[str, BaseDistribution], named: Collection[str]) -> dict[str, BaseDistribution]:
    """The chosen distributions without the parameters that no choice left reads, unless they are named."""
    read_with: Mapping[str, Mapping[str, tuple[Any, ...]]] = getattr(space, "READ_WITH", {})

    def read(name: str) -> bool:
        return all(
            not isinstance(found := chosen.get(other), CategoricalDistribution) or not set(found.choices).isdisjoint(of)
            for other, of in read_with.get(name, {}).items()
        )

    return {name: found for name, found in chosen.items() if name in named or read(name)}


def overridden(
    space: Mapping[str, BaseDistribution], overrides: Mapping[str, Override], more: Mapping[str, str] | None = None
) -> dict[str, BaseDistribution]:
    """The space with some parameters replaced: a value fixes one, a list gives choices, a dict gives a range.

    A dict has `low` and `high`, and may have `log` or `step`; `more`: a module's `OPEN`. Raises ValueError for an
    unknown parameter, a value of the wrong type or one outside the original range's type.
    """
    result = dict(space)
    for name, override in overrides.items():
        if name not in space:
            raise ValueError(
                f"space.{name}: no such parameter; this objective has, with this model, {', '.join(space)}"
            )
        try:
            result[name] = _replacement(space[name], override, (more or {}).get(name, ""))
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(f"space.{name}: {override!r} does not fit: {error}") from None
    return result


def _replacement(original: BaseDistribution, override: Override, pattern: str) -> BaseDistribution:
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
