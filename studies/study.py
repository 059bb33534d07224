"""A study opened for work: spec, data, model, storage and the objective, checked against what was stored before."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from objectives import KINDS, Objective, load_objective
from personalization.backbones.cached import CachedScorer
from personalization.backbones.location import is_of_hub
from personalization.data.splits import Splits
from personalization.errors import UsageError
from personalization.evaluation import Evaluation
from personalization.metrics import metrics_of
from search_spaces import Space, load_space, needed, overridden, parameters
from studies.constraints import Constraint, feasible
from studies.data import load_splits
from studies.pruning import make_pruner
from studies.record import refuse_changes, versions
from studies.samplers import derived_seed, make_sampler
from studies.spec import RELATIVE_METRICS, StudySpec, parse_spec
from studies.storage import WORKER_LOST, open_storage, storage_url

RECORD = "chamtune"
"""Study attribute that holds the frozen record."""

Progress = Callable[[int, int], None]


@dataclass
class OpenStudy:
    """Everything one process needs to run, show or promote a study."""

    spec: StudySpec
    home: Path
    url: str
    study: optuna.Study
    record: dict[str, Any]
    rooms: Space
    space: dict[str, BaseDistribution]
    splits: Splits
    scorer: CachedScorer
    objective: Objective
    baseline: Evaluation
    constraints: list[Constraint]
    sampler_seed: int


def open_study(spec: StudySpec, home: Path, progress: Progress | None = None, worker: str = "0") -> OpenStudy:
    """Create or resume the study of a spec. Scores the tune users; refuses another spec, data or model on resume."""
    rooms = load_space(spec.objective)
    url = storage_url(home, spec.storage)
    scorer = _scorer(spec, home, url)
    try:
        space = overridden(parameters(rooms, scorer.kind), spec.space, getattr(rooms, "OPEN", None))
        space = needed(rooms, space, spec.space)
    except ValueError as error:
        raise UsageError(f"spec {spec.name}: {error}") from None
    make_sampler(spec.sampler, 0, space)
    splits = load_splits(spec)
    record = {
        "spec": spec.identity(),
        "order": list(spec.optimize),
        "data": splits.fingerprints(),
        "model": scorer.fingerprint,
        "revision": scorer.commit,
        "versions": versions(),
        "terms": spec.model_dump(mode="json", include={"promotion", "trials", "tracking"}),
    }
    if scorer.kind not in KINDS.get(spec.objective, (scorer.kind,)):
        wanted = " or ".join(KINDS[spec.objective])
        raise UsageError(
            f"objective {spec.objective} takes a {wanted} model, and {spec.model.path} is an {scorer.kind}"
        )
    measured = (*metrics_of(splits.tune.labels), *RELATIVE_METRICS)
    for name in (*spec.optimize, *spec.constraints):
        if name not in measured:
            raise UsageError(
                f"metric {name} needs labels that are numbers in a row, and these are {splits.tune.labels}"
            )
    study = _create_or_load(spec, url, record)
    sampler_seed = derived_seed(spec.seed, spec.sampler, worker, len(study.get_trials(deepcopy=False)))
    study.sampler = make_sampler(spec.sampler, sampler_seed, space)
    objective = load_objective(spec.objective, splits, scorer, progress)
    baseline = objective.evaluate(rooms.BASELINE)
    return OpenStudy(
        spec=spec,
        home=home,
        url=url,
        study=study,
        record=record,
        rooms=rooms,
        space=space,
        splits=splits,
        scorer=scorer,
        objective=objective,
        baseline=baseline,
        constraints=spec.parsed_constraints(),
        sampler_seed=sampler_seed,
    )


def _scorer(spec: StudySpec, home: Path, url: str) -> CachedScorer:
    model, folder = spec.model, home / "cache" / "scores"
    revision = _pinned_revision(spec, url)
    return CachedScorer(model.path, folder, model.dtype, model.device, model.blocks, model.chat, revision)


def _pinned_revision(spec: StudySpec, url: str) -> str | None:
    """What a spec's model is read at: the commit that its study began with, else what the spec says."""
    if is_of_hub(spec.model.path):
        try:
            stored = optuna.load_study(study_name=spec.name, storage=open_storage(url)).user_attrs.get(RECORD, {})
        except KeyError:
            return spec.model.revision
        if stored.get("revision") and stored["spec"]["model"]["path"] == spec.model.path:
            return str(stored["revision"])
    return spec.model.revision


def _create_or_load(spec: StudySpec, url: str, record: dict[str, Any]) -> optuna.Study:
    storage = open_storage(url)
    study = optuna.create_study(
        storage=storage,
        study_name=spec.name,
        directions=list(spec.optimize.values()),
        pruner=make_pruner(spec.pruner),
        load_if_exists=True,
    )
    stored = study.user_attrs.get(RECORD)
    record["id"] = uuid.uuid4().hex[:12] if stored is None else stored["id"]
    if stored is None and study.get_trials(deepcopy=False):
        raise UsageError(f"study {spec.name!r} in {url} was not made by chamtune; choose another name")
    if stored is not None:
        was = parse_spec(stored["spec"], f"the spec of study {spec.name}").identity()
        refuse_changes(spec.name, {**stored, "spec": was}, record)
    study.set_user_attr(RECORD, record)
    with warnings.catch_warnings(category=optuna.exceptions.ExperimentalWarning, action="ignore"):
        study.set_metric_names(list(spec.optimize))
    return study


def stored_spec(study: optuna.Study) -> StudySpec:
    """The spec that a study was made with."""
    record = study.user_attrs[RECORD]
    return parse_spec({**record["spec"], **record["terms"]}, f"study {study.study_name}")


def find_study(name: str, home: Path, url: str | None) -> optuna.Study:
    """A stored study by name; UsageError naming those that exist otherwise."""
    where = storage_url(home, url)
    if where.startswith("sqlite") and not Path(where.removeprefix("sqlite:///")).exists():
        raise UsageError(f"no studies in {home}; start one with `chamtune run demo --home {home}`")
    storage = open_storage(where)
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        known = ", ".join(optuna.get_all_study_names(storage)) or "none"
        raise UsageError(f"no study {name!r} in {home}; there are: {known}") from None
    if RECORD not in study.user_attrs:
        raise UsageError(f"study {name!r} was not made by chamtune and cannot be shown or promoted")
    return study


def finished(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Trials that count towards the budget: ended, and not because their worker died."""
    return [t for t in trials if t.state.is_finished() and t.user_attrs.get("failure") != WORKER_LOST]


def ranked(trials: list[FrozenTrial], optimize: dict[str, str]) -> Iterator[FrozenTrial]:
    """Feasible trials, best first by the first metric; of several metrics, the Pareto front first."""
    sign = [-1.0 if direction == "maximize" else 1.0 for direction in optimize.values()]
    costs = {t.number: [s * v for s, v in zip(sign, t.values or (), strict=True)] for t in trials if feasible(t)}
    front = {
        n: not any(all(o <= m for o, m in zip(other, mine, strict=True)) and other != mine for other in costs.values())
        for n, mine in costs.items()
    }
    chosen = [t for t in trials if t.number in costs]
    return iter(sorted(chosen, key=lambda t: (not front[t.number], costs[t.number], t.number)))
