"""What the pages know: the studies of one storage, read once and kept up to date, and their insights, made once.

Optuna's storage cache holds finished trials, so that a study is read whole once in a process. Insights are made anew
when a study has more finished trials than they were made of.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.trial import FrozenTrial

from personalization.deployment import CONFIG
from personalization.errors import ChamtuneError, UsageError, first_line
from personalization.mappings import Kept, read_mapping
from studies.insights.history import together
from studies.insights.reading import FOREIGN, goals_of, history_of, kept_path
from studies.insights.report import as_json, insights_of, plain
from studies.names import LOOKS
from studies.shown.pages.heads import best_of, failures_of, winners_of
from studies.shown.pages.plots import Plots, plots
from studies.shown.show import counts_of
from studies.storage import open_storage, trials_of, whereabouts
from studies.study import RECORD, finished, stored_spec, study_names
from studies.verdict.deployments import kept_generations
from studies.verdict.evidence import Evidence
from studies.verdict.judgement import judge

log = logging.getLogger(__name__)
T = TypeVar("T")

RACE = "auto"
"""Name of what a race leaves in its result folder."""
UNREADABLE = (ChamtuneError, AttributeError, KeyError, TypeError, ValueError)
"""What is raised where something is taken away while it is read, or has another form. It concerns one row alone."""


@dataclass
class House:
    """The studies of a home. `dashboard`, `mlflow`: where their pages are; `store`: the URI of MLflow's store."""

    home: Path
    url: str
    dashboard: str | None = None
    mlflow: str | None = None
    store: str | None = None
    _studies: dict[str, tuple[tuple[Any, ...], optuna.Study]] = field(default_factory=dict)
    _made: dict[tuple[str | None, ...], tuple[tuple[Any, ...], dict[str, Any], Plots]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.storage = open_storage(self.url)

    def names(self) -> list[str]:
        """The studies there are now."""
        return study_names(self.storage)

    def read_all(self) -> None:
        """Read every study once, which takes seconds where there are thousands of trials."""
        self._of_each(lambda name: trials_of(self.study(name)))

    def study(self, name: str) -> optuna.Study:
        """A study by name; UsageError where there is none. One that was deleted and made again is read again."""
        names = self.names()
        if name not in names:
            raise UsageError(f"no study {name!r}; there are: {', '.join(names) or 'none'}")
        try:
            mark = self._mark(name)
            if name not in self._studies or self._studies[name][0] != mark:
                self._studies[name] = (mark, optuna.load_study(study_name=name, storage=self.storage))
        except KeyError:
            raise UsageError(f"study {name!r} was deleted just now") from None
        return self._studies[name][1]

    def _mark(self, name: str) -> tuple[Any, ...]:
        """What tells a study from one that took its name later, and in SQLite its number with it."""
        number = self.storage.get_study_id_from_name(name)
        record = self.storage.get_study_user_attrs(number).get(RECORD)
        if record is not None:
            return number, record["id"]
        try:
            first = self.storage.get_trial_id_from_study_id_trial_number(number, 0)
        except KeyError:
            return (number,)
        return number, self.storage.get_trial(first).datetime_start

    def _of_each(self, told: Callable[[str], T]) -> dict[str, T]:
        """What each study tells. One that cannot be read, or is deleted meanwhile, is left out."""
        found = {}
        for name in self.names():
            try:
                found[name] = told(name)
            except UNREADABLE as error:
                log.warning("study %s is left out: %s: %s", name, type(error).__name__, first_line(error))
        return found

    def insights(self, names: Sequence[str], goal: str | None = None) -> dict[str, Any]:
        """The insights of studies, each taken once, by their first goal or the named one, as one object, with the path
        where it was measured; made again as trials end. `heads`: a row a study; `winners`: of one study the trials
        that lead; `failures`: why trials failed; `compare`: the command that tests several of our studies."""
        return self._told(names, goal)[0]

    def page(self, names: Sequence[str], goal: str | None = None) -> dict[str, Any]:
        """The insights with a plot of each parameter, `plots`, which are too much for the API."""
        told, plots = self._told(names, goal)
        return {**told, "plots": plots}

    def _told(self, names: Sequence[str], goal: str | None) -> tuple[dict[str, Any], Plots]:
        names = list(dict.fromkeys(names))
        with self._lock:
            studies = [self.study(name) for name in names]
            goals = list(goals_of(studies[0]))
            goal = None if goal == goals[0] else goal
            read = [trials_of(study) for study in studies]
            ours = len(names) == 1 and RECORD in studies[0].user_attrs and goal in (None, *goals)
            path = kept_path(self.home, names[0], goal) if ours else None
            ended = (*(self._studies[n][0] for n in names), *(len(finished(trials)) for trials in read), id_of(path))
            key = (goal, *names)
            if key not in self._made or self._made[key][0] != ended:
                found = [history_of(study, trials, goal) for study, trials in zip(studies, read, strict=True)]
                history = found[0] if len(found) == 1 else together(found)
                told = as_json(history, insights_of(history, path=path))
                self._made[key] = (ended, told, plots(history))
            _, told, drawn = self._made[key]
        verdicts = self._verdicts()
        heads = [self._row(study, trials, verdicts, {}) for study, trials in zip(studies, read, strict=True)]
        own = [name for name, study in zip(names, studies, strict=True) if RECORD in study.user_attrs]
        one = len(names) == 1
        whole = {
            **told,
            "studies": names,
            "goal": goal,
            "path": path,
            "heads": heads,
            "failures": [
                {"study": n, **row} for n, known in zip(names, read, strict=True) for row in failures_of(known)
            ],
            "winners": winners_of(studies[0], read[0], told, heads[0]["verdict"]) if one else None,
            "compare": f"chamtune compare {' '.join(own)}{self.here}" if len(own) > 1 else None,
        }
        return whole, drawn

    def overview(self) -> list[dict[str, Any]]:
        """A row a study: counts, best feasible value, activity, verdict, deployments, pages elsewhere."""
        verdicts, deployed = self._verdicts(), self._deployments()

        def row(name: str) -> dict[str, Any]:
            study = self.study(name)
            return self._row(study, trials_of(study), verdicts, deployed)

        return list(self._of_each(row).values())

    def races(self) -> list[dict[str, Any]]:
        """A row a race of `chamtune auto`, the latest first: name, leader, its study, whether promoted and why, minutes
        given, and what confirm users said."""
        written = {}
        for path in (self.home / "results").glob(f"*/{RACE}.json"):
            if (told := race_in(path)) is not None:
                written[path.parent.name] = told
        return sorted(written.values(), key=lambda row: -row.pop("written"))

    def race(self, name: str) -> str:
        """The page that a race left; UsageError where there is none."""
        names = [row["name"] for row in self.races()]
        if name not in names:
            raise UsageError(f"no race {name!r}; there are: {', '.join(names) or 'none'}")
        page = self.home / "results" / name / f"{RACE}.html"
        try:
            return page.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise UsageError(f"the page of race {name!r} cannot be read: {page}: {error.strerror}") from None

    @property
    def here(self) -> str:
        """What says in a command that these studies are meant."""
        return whereabouts(self.home, self.url)

    def _row(
        self,
        study: optuna.Study,
        trials: Sequence[FrozenTrial],
        verdicts: Mapping[str, dict[str, Any]],
        deployed: Mapping[str, list[dict[str, Any]]],
    ) -> dict[str, Any]:
        name, record = study.study_name, study.user_attrs.get(RECORD)
        row = {**counts_of(name, trials), **best_of(study, trials), "foreign": FOREIGN in study.user_attrs}
        row |= {
            "verdict": None if record is None else verdicts.get(record["id"]),
            "deployments": deployed.get(name, []),
            "links": self._links(name, record),
        }
        found: dict[str, Any] = plain(row)
        return found

    def _verdicts(self) -> dict[str, dict[str, Any]]:
        """Study id -> what its last look at confirm users gave, by the terms that its spec states now."""
        if LOOKS not in optuna.get_all_study_names(self.storage):
            return {}
        looks = {look.study_id: look for look in Evidence(self.storage).looks() if look.found is not None}

        def judged(name: str) -> dict[str, Any] | None:
            study = self.study(name)
            look = looks.get(study.user_attrs.get(RECORD, {}).get("id"))
            if look is None or look.found is None:
                return None
            spec = stored_spec(study)
            verdict = judge(look.found, spec.parsed_constraints(), spec.promotion, list(spec.optimize), look.level)
            told = {"study_id": look.study_id, "trial": look.found["trial"], "metrics": look.found["metrics"]}
            return {**verdict._asdict(), **told}

        return {found.pop("study_id"): found for found in self._of_each(judged).values() if found is not None}

    def _deployments(self) -> dict[str, list[dict[str, Any]]]:
        """Study -> the places where its config is the newest generation."""
        found: dict[str, list[dict[str, Any]]] = {}
        for place in sorted((self.home / "deployments").glob("*")):
            newest = max(kept_generations(place).items(), default=None)
            if newest is None:
                continue
            try:
                told = read_mapping(newest[1] / CONFIG, "a deploy config", Kept)["provenance"]
                row = {"place": place.name.rpartition("-")[0], "generation": newest[0], "at": told.get("promoted_at")}
                found.setdefault(told["study"], []).append(row)
            except UNREADABLE as error:
                log.warning("deployment %s is left out: %s", newest[1], first_line(error))
        return found

    def _links(self, name: str, record: Mapping[str, Any] | None) -> dict[str, str | None]:
        from studies.shown.ui import runs_page, tracked

        links: dict[str, str | None] = {"dashboard": None, "mlflow": None}
        if self.dashboard is not None:
            links["dashboard"] = f"{self.dashboard}/dashboard/studies/{self.storage.get_study_id_from_name(name)}"
        if self.mlflow and self.store and (study := tracked(self.home, name, record)) is not None:
            links["mlflow"] = runs_page(self.mlflow, study, self.store)
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


def race_in(path: Path) -> dict[str, Any] | None:
    """What a race left in a file, and when it was written; None where the file is gone, torn or of another form."""
    kept = ("leader", "study", "promoted", "reason", "minutes", "confirm")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        confirm = found.get("confirm")
        if confirm is not None and not {"baseline_accuracy", "accuracy"} <= set(confirm):
            return None
        row = {"name": path.parent.name, **{key: found.get(key) for key in kept}, "written": path.stat().st_mtime}
        told: dict[str, Any] = plain(row)
    except (OSError, *UNREADABLE):
        return None
    return told


def id_of(path: Mapping[str, Any] | None) -> tuple[Any, ...]:
    """What tells one measured path from another."""
    return () if path is None else tuple(path.get(key) for key in ("trial", "measured_on", "error"))
