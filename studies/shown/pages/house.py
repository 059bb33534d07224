"""What the pages know: the studies of one storage, read once and kept up to date, and their insights, made once.

Optuna's storage cache holds finished trials, so that a study is read whole once in a process. Insights are made anew
when a study has more finished trials than they were made of.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from personalization.errors import UsageError
from studies.constraints import feasible
from studies.insights.history import together
from studies.insights.reading import FOREIGN, goals_of, history_of, kept_path
from studies.insights.report import as_json, insights_of
from studies.storage import open_storage, trials_of
from studies.study import RECORD, finished, ranked, stored_spec, study_names
from studies.verdict.evidence import LOOKS, Evidence
from studies.verdict.judgement import judge
from tracking.spool import OFF, Spool, tracking_uri


@dataclass
class House:
    """The studies of a home. `dashboard`, `mlflow`: where their pages are; `store`: the URI of MLflow's store."""

    home: Path
    url: str
    dashboard: str | None = None
    mlflow: str | None = None
    store: str | None = None
    _studies: dict[str, tuple[int, optuna.Study]] = field(default_factory=dict)
    _made: dict[tuple[str | None, ...], tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.storage = open_storage(self.url)

    def names(self) -> list[str]:
        """The studies there are now."""
        return study_names(self.storage)

    def read_all(self) -> None:
        """Read every study once, which takes seconds where there are thousands of trials."""
        for name in self.names():
            trials_of(self.study(name))

    def study(self, name: str) -> optuna.Study:
        """A study by name; UsageError where there is none. One that was deleted and made again is read again."""
        if name not in self.names():
            raise UsageError(f"no study {name!r}; there are: {', '.join(self.names()) or 'none'}")
        number = self.storage.get_study_id_from_name(name)
        if name not in self._studies or self._studies[name][0] != number:
            self._studies[name] = (number, optuna.load_study(study_name=name, storage=self.storage))
        return self._studies[name][1]

    def insights(self, names: Sequence[str], goal: str | None = None) -> dict[str, Any]:
        """The insights of studies by their first goal or the named one, as one object, with the path where it was
        measured; made again as trials end."""
        with self._lock:
            studies = [self.study(name) for name in names]
            goals = list(goals_of(studies[0]))
            goal = None if goal == goals[0] else goal
            read = [trials_of(study) for study in studies]
            ours = len(names) == 1 and RECORD in studies[0].user_attrs and goal in (None, *goals)
            path = kept_path(self.home, names[0], goal) if ours else None
            ended = (*(len(finished(trials)) for trials in read), id_of(path))
            key = (goal, *names)
            if key not in self._made or self._made[key][0] != ended:
                found = [history_of(study, trials, goal) for study, trials in zip(studies, read, strict=True)]
                history = found[0] if len(found) == 1 else together(found)
                self._made[key] = (ended, as_json(history, insights_of(history, path=path)))
        return {**self._made[key][1], "studies": list(names), "goal": goal, "path": path}

    def overview(self) -> list[dict[str, Any]]:
        """A row a study: counts, best feasible value, activity, verdict, deployments, pages elsewhere."""
        verdicts, deployed = self._verdicts(), self._deployments()
        rows = []
        for name in self.names():
            study = self.study(name)
            trials = trials_of(study)
            record = study.user_attrs.get(RECORD)
            row = {**_counts(name, trials), **_best(study, trials), "foreign": FOREIGN in study.user_attrs}
            row |= {
                "verdict": None if record is None else verdicts.get(record["id"]),
                "deployments": deployed.get(name, []),
            }
            rows.append({**row, "links": self._links(name, record)})
        return rows

    def _verdicts(self) -> dict[str, dict[str, Any]]:
        """Study id -> what its last look at confirm users gave, by the terms that its spec states now."""
        if LOOKS not in optuna.get_all_study_names(self.storage):
            return {}
        specs = {
            study.user_attrs[RECORD]["id"]: stored_spec(study)
            for study in map(self.study, self.names())
            if RECORD in study.user_attrs
        }
        found = {}
        for look in Evidence(self.storage).looks():
            spec = specs.get(look.study_id)
            if spec is None or look.found is None:
                continue
            verdict = judge(look.found, spec.parsed_constraints(), spec.promotion, list(spec.optimize), look.level)
            found[look.study_id] = {**verdict._asdict(), "trial": look.found["trial"]}
        return found

    def _deployments(self) -> dict[str, list[dict[str, Any]]]:
        """Study -> the places where its config is the newest generation."""
        found: dict[str, list[dict[str, Any]]] = {}
        for place in sorted((self.home / "deployments").glob("*")):
            kept = sorted((int(path.name) for path in place.glob("*") if path.name.isdigit()), reverse=True)
            if not kept:
                continue
            config = yaml.safe_load((place / str(kept[0]) / "deploy.yaml").read_text(encoding="utf-8"))
            told = config["provenance"]
            row = {"place": place.name.rpartition("-")[0], "generation": kept[0], "at": told.get("promoted_at")}
            found.setdefault(told["study"], []).append(row)
        return found

    def _links(self, name: str, record: Mapping[str, Any] | None) -> dict[str, str | None]:
        from studies.shown.ui import Tracked, runs_page

        links: dict[str, str | None] = {"dashboard": None, "mlflow": None}
        if self.dashboard is not None:
            links["dashboard"] = f"{self.dashboard}/dashboard/studies/{self.storage.get_study_id_from_name(name)}"
        if self.mlflow and self.store and record is not None and record["terms"]["tracking"] != OFF:
            tracked = Tracked(
                Spool(self.home, name, record["id"]), tracking_uri(self.home, record["terms"]["tracking"])
            )
            if (page := runs_page(self.mlflow, tracked, self.store)) is not None:
                links["mlflow"] = page
        return links


def house_of_environment() -> House:
    """The house that the environment names."""
    given = os.environ
    return House(
        Path(given["CHAMTUNE_HOME"]),
        given["CHAMTUNE_STORAGE"],
        given.get("CHAMTUNE_DASHBOARD"),
        given.get("CHAMTUNE_MLFLOW"),
        given.get("MLFLOW_BACKEND_STORE_URI"),
    )


def id_of(path: Mapping[str, Any] | None) -> tuple[Any, ...]:
    """What tells one measured path from another."""
    return () if path is None else (path["trial"], path["measured_on"], path.get("error"))


def _counts(name: str, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    ended = finished(list(trials))
    last = max((t.datetime_complete for t in ended if t.datetime_complete is not None), default=None)
    complete = sum(t.state == TrialState.COMPLETE for t in ended)
    return {
        "study": name,
        "trials": len(ended),
        "complete": complete,
        "running": sum(t.state == TrialState.RUNNING for t in trials),
        "waiting": sum(t.state == TrialState.WAITING for t in trials),
        "feasible": sum(map(feasible, ended)),
        "last": None if last is None else last.isoformat(timespec="seconds"),
    }


def _best(study: optuna.Study, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    """Metric, direction, method, and the best feasible value of the first goal."""
    goals = goals_of(study)
    method = "imported" if FOREIGN in study.user_attrs else "Optuna"
    if RECORD in study.user_attrs:
        method = stored_spec(study).method
    metric = next(iter(goals))
    best = next(ranked(finished(list(trials)), goals), None)
    return {
        "metric": metric,
        "direction": goals[metric],
        "method": method,
        "best": None if best is None else best.values[0],
        "best_trial": None if best is None else best.number,
    }
