"""Space of the route: chains as they were found, one for each question or all, and how sure to be of another one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from search_spaces import ChainParams, space_of
from search_spaces.conditions import Read, other_than
from search_spaces.parameters import choice, declared, real


@dataclass(frozen=True, slots=True)
class Params:
    """`arms`: JSON, a list of stage -> parameters. `answer`: one of them for each question, the first where nothing
    speaks for another, or the mean of all. `penalty`: of the ridge that tells who is better off with another one."""

    arms: str = choice("", [""])
    answer: str = choice("one", ["one", "mean"])
    penalty: float = real(100.0, (1.0, 10_000.0), log=True)

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


BASELINE = Params()
SPACE = declared(Params)
OPEN = {"arms": r"\[.*\]"}
"""A spec gives the chains, as `arms_of` writes them, or `start_from: [STUDY, STUDY]`."""
ARMS = {"arms": other_than("")}
READ: Read = {"answer": [ARMS], "penalty": [{**ARMS, "answer": ("one",)}]}


def arms_of(chains: Sequence[ChainParams]) -> str:
    """Chains as `Params.arms`, with all their parameters."""
    return json.dumps(
        [{stage: asdict(own) for stage, own in params.items()} for params in chains],
        default=lambda number: number.item(),
    )


def complexity(params: Params) -> float:
    """That of the chains, and one for choosing."""
    chains = params.chains
    return float(len(chains) + sum(space_of(name).complexity(own) for arm in chains for name, own in arm.items()))
