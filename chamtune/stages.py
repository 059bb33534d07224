"""A step of your own in the chain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, field, make_dataclass
from types import SimpleNamespace
from typing import Any

from optuna.distributions import BaseDistribution

from personalization.errors import UsageError
from personalization.stages import STAGES, Stage, register
from search_spaces import SPACES

Space = Mapping[str, tuple[BaseDistribution, Any]]


def stage(name: str, space: Space, before: str = "calibration") -> Callable[[type[Stage]], type[Stage]]:
    """Class decorator: put a `Stage` into the table under a name, to stand before another one in a chain.

    `space`: parameter -> (Optuna distribution, the value at which the stage does nothing). The stage gets its
    parameters as attributes. Import the module that has it before a spec, or a deployment, names it.
    """
    if before not in STAGES:
        raise UsageError(f"stage {before!r} is not known; there are {', '.join(STAGES)}")

    def put(given: type[Stage]) -> type[Stage]:
        defaults = [(key, type(value), field(default=value)) for key, (_, value) in space.items()]
        params = make_dataclass("Params", defaults, frozen=True)
        baseline = params()

        def complexity(own: Any) -> float:
            return float(sum(value != getattr(baseline, key) for key, value in asdict(own).items()))

        SPACES[name] = SimpleNamespace(
            SPACE={key: distribution for key, (distribution, _) in space.items()},
            READ={},
            Params=params,
            BASELINE=baseline,
            complexity=complexity,
        )
        register(name, given(), before)
        return given

    return put
