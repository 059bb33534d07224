"""Data, a model and a number of minutes: arms are raced, and the best is promoted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chamtune.dataset import Dataset
from chamtune.model import Model
from chamtune.study import plain_spec
from studies.auto.page import write_page
from studies.auto.plan import Plan, data_of
from studies.auto.race import Race
from studies.spec import DIRECTIONS

if TYPE_CHECKING:
    import pandas as pd


class Auto:
    """A race of the ways to personalise. `data`: a `Dataset`, a table, LaMP files or a spec; `model`: a `Model` or its
    path. `stages`: those that may be used, none given: all; `mix_users`: whether other users' items may answer a user;
    `like`: studies whose best settings are tried first; `more`: further keys of a study's spec.

    A race of the same name in the same home goes on where it was; its minutes are of all runs together.
    """

    def __init__(
        self,
        data: Dataset | str | Path,
        model: Model | str | Path,
        minutes: float = 30.0,
        name: str = "auto",
        home: str | Path = ".chamtune",
        *,
        stages: Sequence[str] = (),
        metric: str = "accuracy",
        mix_users: bool = True,
        like: Sequence[str] = (),
        more: Mapping[str, Any] | None = None,
    ) -> None:
        self.home = Path(home)
        found = {"data": data} if isinstance(data, Dataset) else data_of(str(data), self.home, name)
        goal = {"optimize": {metric: DIRECTIONS[metric]}}
        spec = plain_spec({**found, "model": model, **goal, **(more or {})}, self.home)
        self.plan = Plan(name, spec, minutes, tuple(stages), mix_users, tuple(like))
        self.result: dict[str, Any] | None = None

    def run(self, out: str | Path = "deploy", say: Callable[[str], None] = print) -> Auto:
        """Race, promote the best to `out` where it holds, and write the page; the race itself.

        Call it from the main thread: elsewhere a trial that runs too long cannot be ended.
        """
        race = Race(self.plan, self.home, say=say)
        self.result = write_page(race, race.run(Path(out)), Path(out))
        return self

    def arms(self) -> pd.DataFrame:
        """A row an arm: accuracy, gain, users better and worse, trials, seconds, fate. Figures of tune and select users
        are optimistic."""
        import pandas as pd

        if self.result is None:
            raise RuntimeError("the race was not run here; call run() first")
        return pd.DataFrame(self.result["arms"])

    def __repr__(self) -> str:
        done = "not run here" if self.result is None else f"{self.result['leader']} leads"
        return f"Auto({self.plan.name!r}, {self.plan.minutes:g} minutes, {done})"
