"""A study: run, looked at, promoted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState

from chamtune.dataset import Dataset
from chamtune.model import Model
from personalization.errors import UsageError
from personalization.tasks import TASKS
from studies.carried import carry_over
from studies.constraints import feasible
from studies.results import StudyResult
from studies.runner import run_study
from studies.spec import load_spec, parse_spec
from studies.study import OpenStudy, best_feasible, ended_trials, open_study
from studies.trial import MEASURED
from studies.verdict.promotion import promote

if TYPE_CHECKING:
    import pandas as pd


class Study:
    """One study. `spec`: a preset's name, a YAML file, or a mapping as in one; its `data` may be a `Dataset`, its
    `model` a `Model`. `home`: folder of studies, caches and results.

    A study of the same name in the same home goes on where it was.
    """

    def __init__(self, spec: str | Path | Mapping[str, Any], home: str | Path = ".chamtune") -> None:
        self.home = Path(home)
        self.spec = (
            load_spec(str(spec)) if isinstance(spec, str | Path) else parse_spec(plain_spec(spec, self.home), "spec")
        )
        self.result: StudyResult | None = None
        self.carried: list[dict[str, Any]] = []
        self._opened: OpenStudy | None = None

    def run(self, trials: int | None = None, from_: str | Study | Sequence[str | Study] = ()) -> Study:
        """Run to the spec's number of trials, or to this one, earlier trials included; the study itself.

        `from_`: earlier studies of this home, whose trials are taken over, once, as far as they fit; where data or
        model are others, their likely best settings are tried first. What came of it is in `carried`: study, kept,
        queued, outside (reason -> count). UsageError where one is not there, or has another chain.
        """
        if trials is not None:
            self.spec = parse_spec({**self.spec.model_dump(), "trials": trials}, "run")
        earlier = [from_] if isinstance(from_, str | Study) else from_
        names = [one.spec.name if isinstance(one, Study) else one for one in earlier]
        self.carried = carry_over(self.spec, self.home, names) if names else []
        self.result, self._opened = run_study(self.spec, self.home), None
        return self

    @property
    def _open(self) -> OpenStudy:
        if self._opened is None:
            self._opened = open_study(self.spec, self.home)
        return self._opened

    def trials(self) -> pd.DataFrame:
        """A row a finished trial: number, state, value(s), feasible, `params_*` by the chain's names, `metrics_*`."""
        import pandas as pd

        opened, rows = self._open, []
        for trial in ended_trials(opened.study):
            params = opened.rooms.decode(trial.params).flat() if trial.state == TrialState.COMPLETE else trial.params
            metrics = trial.user_attrs.get(MEASURED, {}).get("metrics", {})
            values = dict(zip(self.spec.optimize, trial.values or [], strict=False))
            row = {"number": trial.number, "state": trial.state.name, **values, "feasible": feasible(trial)}
            row |= {f"params_{name}": value for name, value in params.items()}
            rows.append(row | {f"metrics_{name}": value for name, value in metrics.items()})
        return pd.DataFrame(rows)

    def best(self) -> dict[str, Any]:
        """Parameters of the best feasible trial, by the chain's names. UsageError where there is none."""
        found: dict[str, Any] = self._best_params().flat()
        return found

    def _best_params(self) -> Any:
        return self._open.rooms.decode(best_feasible(self._open).params)

    def predictions(self, part: str = "tune") -> pd.DataFrame:
        """The best trial's answers on tune or select users: id, user, gold, label, correct, prior, `p_*` by label.

        On tune users they are optimistic. Confirm users are looked at by `promote` alone.
        """
        import numpy as np
        import pandas as pd

        if part not in ("tune", "select"):
            raise UsageError(f"part {part!r} has no predictions to be looked at; allowed are tune, select")
        found = self._open.objective.evaluate(self._best_params(), part)
        names = np.array(found.labels)
        columns = {
            "id": found.question_ids,
            "user": found.user_ids,
            "gold": names[found.gold],
            "label": names[found.predicted],
            "correct": found.correct,
            "prior": list(found.prior_modes),
        }
        probabilities = np.exp(found.log_probs)
        return pd.DataFrame({**columns, **{f"p_{name}": probabilities[:, i] for i, name in enumerate(found.labels)}})

    def promote(
        self, out: str | Path = "deploy", replace_unreadable: bool = False, cold_start: bool = True
    ) -> dict[str, Any]:
        """Test the best trial on the confirm users and, if it holds, write the deployment folder `out`.

        The verdict: `promoted`, `reason`, `trial`, `params`, `confirm` (the evidence; `parts`: what of the gain is
        personal), `cold_start`, `deploy`, ...
        """
        return promote(self._open, Path(out), replace_unreadable, cold_start)

    def __repr__(self) -> str:
        done = "not run here" if self.result is None else f"{self.result.trials} trials"
        return f"Study({self.spec.name!r}, {self.spec.method}, {done})"


def plain_spec(spec: Mapping[str, Any], home: Path) -> dict[str, Any]:
    """The mapping with data and model as files; a `Dataset` is written into the home folder."""
    plain = {"tracking": "none", **spec}
    data, model = spec.get("data"), spec.get("model")
    if isinstance(data, Dataset):
        folder = home / "data" / data.records.fingerprint()[:16]
        plain["data"] = {"path": str(data.save(folder))}
        if data.records.task.name not in TASKS:
            plain.setdefault("task", data.records.task)
    elif isinstance(data, str | Path):
        plain["data"] = {"path": str(data)}
    if isinstance(model, Model):
        plain["model"] = {key: value for key, value in model.spec.items() if value is not None}
    elif isinstance(model, str | Path):
        plain["model"] = {"path": str(model)}
    return plain
