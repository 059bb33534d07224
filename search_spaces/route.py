"""Space of the route: chains as they were found, one for each question or all, and how sure to be of another one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from search_spaces import ChainParams, space_of
from search_spaces.conditions import Read, other_than

SPACE: Mapping[str, BaseDistribution] = {
    "arms": CategoricalDistribution([""]),
    "answer": CategoricalDistribution(["one", "mean"]),
    "penalty": FloatDistribution(1.0, 10_000.0, log=True),
}
OPEN = {"arms": r"\[.*\]"}
"""A spec gives the chains, as `arms_of` writes them, or `start_from: [STUDY, STUDY]`."""
ARMS = {"arms": other_than("")}
READ: Read = {"answer": [ARMS], "penalty": [{**ARMS, "answer": ("one",)}]}


@dataclass(frozen=True, slots=True)
class Params:
    """`arms`: JSON, a list of stage -> parameters. `answer`: one of them for each question, the first where nothing
    speaks for another, or the mean of all. `penalty`: of the ridge that tells who is better off with another one."""

    arms: str = ""
    answer: str = "one"
    penalty: float = 100.0

    @property
    def chains(self) -> tuple[ChainParams, ...]:
        """The chains with their parameters; ValueError where `arms` does not say them."""
        try:
            return tuple(
                ChainParams(tuple((stage, space_of(stage).Params(**own)) for stage, own in arm.items()))
                for arm in json.loads(self.arms or "[]")
            )
        except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"route.arms is no list of stage -> parameters: {error}") from None


def arms_of(chains: Sequence[ChainParams]) -> str:
    """Chains as `Params.arms`, with all their parameters."""
    return json.dumps([{stage: asdict(own) for stage, own in params.items()} for params in chains], default=_plain)


def _plain(number: Any) -> Any:
    """A number of numpy as one of Python."""
    return number.item()


BASELINE = Params()


def complexity(params: Params) -> float:
    """That of the chains, and one for choosing."""
    chains = params.chains
    return float(len(chains) + sum(space_of(name).complexity(own) for arm in chains for name, own in arm.items()))
