"""A study opened for work: spec, data, model, storage and the chain, checked against what was stored before."""

from __future__ import annotations

import json
import logging
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial

from objectives.classification import Classification
from personalization.backbones.cached import CachedScorer
from personalization.backbones.location import is_of_hub
from personalization.data.splits import Splits
from personalization.databases import kept, shown
from personalization.errors import UsageError
from personalization.evaluation import Evaluation
from personalization.metrics import metrics_of
from personalization.stages import ordered, stage
from search_spaces import ChainParams, ChainSpace
from search_spaces.route import Params as RouteParams
from search_spaces.route import arms_of
from studies.constraints import Constraint, feasible
from studies.data import read_data
from studies.names import LOOKS
from studies.pruning import make_pruner
from studies.record import (
    differences,
    held_versions,
    kept_places,
    places_of,
    refuse_changes,
    refuse_missing,
    spec_of,
    versions,
)
from studies.recovery import uncounted
from studies.samplers import LONE, derived_seed, make_sampler, points
from studies.spec import RELATIVE_METRICS, StudySpec, parse_spec
from studies.storage import may_exist, one_creator, open_storage, storage_url
from studies.verdict.evidence import Evidence

log = logging.getLogger(__name__)

RECORD = "chamtune"
"""Study attribute that holds the frozen record."""

Progress = Callable[[int, int], None]


@dataclass
class OpenStudy:
    """Everything one process needs to run, show or promote a study."""

    spec: StudySpec
    home: Path
    url: str
    storage: RDBStorage
    study: optuna.Study
    record: dict[str, Any]
    rooms: ChainSpace
    space: dict[str, BaseDistribution]
    splits: Splits
    scorer: CachedScorer
    objective: Classification
    baseline: Evaluation
    constraints: list[Constraint]
    sampler_seed: int


def open_study(
    spec: StudySpec,
    home: Path,
    progress: Progress | None = None,
    beside: OpenStudy | None = None,
    started: Mapping[str, Any] | None = None,
) -> OpenStudy:
    """Create or resume the study of a spec. Scores the tune users; refuses another spec, data or model on resume.

    `beside`: an open study of the same data and model; `started`: what a new study fixes in the place of `start_from`.
    """
    url = storage_url(home, spec.storage)
    stored = _stored_record(spec, url)
    if stored:  # shares that the spec does not say are those that the study began with
        spec = spec.with_shares(stored["spec"]["data"].get("shares", spec.shares))
    scorer = beside.scorer if beside is not None else _scorer(spec, home, stored)
    started = _fixed(spec, url, stored, started)
    rooms = spec.space_of.starting_from(started)
    try:
        space = rooms.overridden(scorer.kind, spec.space)
    except ValueError as error:
        raise UsageError(f"spec {spec.name}: {error}") from None
    points(spec.sampler, spec.seed, space)
    splits = beside.splits if beside is not None else read_data(spec).splits()
    record = _record(spec, splits, scorer, started)
    _refuse_unfit(spec, scorer, splits.tune.labels, space, started)
    storage = open_storage(url)
    study = _create_or_load(spec, storage, record)
    Evidence(storage).note_roles(str(record["id"]), spec.name, splits)
    sampler_seed = derived_seed(spec.seed, spec.sampler, LONE, len(study.get_trials(deepcopy=False)))
    study.sampler = make_sampler(spec.sampler, sampler_seed)
    objective = Classification(rooms, splits, scorer, progress, rooms.reachable(space))
    baseline = objective.evaluate(rooms.BASELINE)
    return OpenStudy(
        spec=spec,
        home=home,
        url=url,
        storage=storage,
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


def _refuse_unfit(
    spec: StudySpec,
    scorer: CachedScorer,
    labels: Sequence[str],
    space: Mapping[str, BaseDistribution],
    started: Mapping[str, Any],
) -> None:
    """UsageError where a stage or a retriever does not take this kind of model, or a metric not these labels."""
    kind = scorer.kind
    if "route" in spec.space_of.chain:
        told: Any = space.get("arms")
        _refuse_arms(spec, (started["route.arms"],) if told is None else told.choices, kind)
    if scorer.retriever is not None and (kind, scorer.retriever.kind) != ("causal", "encoder"):
        raise UsageError(
            f"model.retriever: {spec.model.retriever} is a model of kind {scorer.retriever.kind} and "
            f"{spec.model.path} of kind {kind}; a retriever is an encoder and serves a causal model, and an encoder "
            "needs none"
        )
    for name in spec.space_of.chain:
        kinds = stage(name).kinds
        if kind not in kinds:
            raise UsageError(f"stage {name} takes a {' or '.join(kinds)} model, and {spec.model.path} is an {kind}")
    measured = (*metrics_of(labels), *RELATIVE_METRICS)
    for name in (*spec.optimize, *spec.constraints):
        if name not in measured:
            raise UsageError(f"metric {name} needs labels that are numbers in a row, and these are {labels}")


def _refuse_arms(spec: StudySpec, choices: Sequence[str], kind: str) -> None:
    """UsageError where what a route chooses between are no chains for this kind of model."""
    for text in choices:
        try:
            chains = RouteParams(text).chains
            if json.loads(arms_of(chains)) != json.loads(text or "[]"):
                raise ValueError("route.arms names not every parameter; start_from: [STUDY, STUDY] does")
            if len(chains) < 2:
                raise ValueError(f"a route between {len(chains)} chains; give start_from: [STUDY, STUDY]")
            for name in (name for arm in chains for name in ordered(tuple(arm))):
                if stage(name).alone or kind not in stage(name).kinds:
                    raise ValueError(f"route.arms: stage {name} cannot stand there, or takes no {kind} model")
        except (ValueError, UsageError) as error:
            raise UsageError(f"spec {spec.name}: {error}") from None


def _scorer(spec: StudySpec, home: Path, stored: Mapping[str, Any]) -> CachedScorer:
    model, folder = spec.model, home / "cache" / "scores"
    revision, retriever, before = model.revision, None, spec_of(stored)["model"] if stored else {}
    if is_of_hub(model.path) and stored.get("revision") and before["path"] == model.path:
        revision = str(stored["revision"])  # the commit that the study began with
    if model.retriever is not None:
        same = is_of_hub(model.retriever) and before.get("retriever") == model.retriever
        commit = stored.get("retriever_revision") if same else None
        retriever = CachedScorer(model.retriever, folder, device=model.device, revision=commit)
    found = CachedScorer(model.path, folder, model.dtype, model.device, model.blocks, model.chat, revision)
    found.retriever = retriever
    return found


def _record(spec: StudySpec, splits: Splits, scorer: CachedScorer, started: Mapping[str, Any]) -> dict[str, Any]:
    """What a study is held to when it goes on."""
    found, retriever = scorer.retriever, dict[str, Any]()
    terms = spec.model_dump(mode="json", include={"promotion", "trials"})  # what may change later
    if found is not None:
        retriever = {"retriever": found.fingerprint, "retriever_revision": found.commit}
    return {
        "spec": spec.identity(),
        "order": list(spec.optimize),
        "data": splits.fingerprints(),
        "model": scorer.fingerprint,
        "places": places_of(spec.model_dump()),
        "revision": scorer.commit,
        **retriever,
        **({"started": started} if started else {}),
        "versions": versions(),
        "terms": {**terms, "tracking": None if spec.tracking is None else kept(spec.tracking)},
    }


def _stored_record(spec: StudySpec, url: str) -> dict[str, Any]:
    """The record of the spec's study, empty where there is none yet."""
    try:
        return dict(optuna.load_study(study_name=spec.name, storage=open_storage(url)).user_attrs.get(RECORD, {}))
    except KeyError:
        return {}


def _fixed(spec: StudySpec, url: str, stored: Mapping[str, Any], given: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Full name -> value of what is not searched: as it was stored, else as it is given, else by `start_from`."""
    if "started" in stored:
        return dict(stored["started"])
    return _started(spec, url) if given is None else given


def _started(spec: StudySpec, url: str) -> dict[str, Any]:
    """Full name -> value: the best values of the study that this one starts from, of the stages that both begin with.

    Of a route it is the best chains of all that it starts from. UsageError where one is not there, has no feasible
    trial, or begins with another stage.
    """
    found = [_best_of(name, url) for name in spec.starts]
    if spec.chain == ("route",):
        return {"route.arms": arms_of(found)} if found else {}
    started, chain = dict[str, Any](), spec.space_of.chain
    for params in found:
        common = [name for name in takewhile(params.__contains__, chain) if name != "calibration"]
        if not common:
            raise UsageError(
                f"start_from: study {spec.start_from!r} has the chain {', '.join(params)}, which has no stage to begin "
                f"{', '.join(chain)} with"
            )
        started |= {f"{name}.{key}": value for name in common for key, value in asdict(params[name]).items()}
    return started


def _best_of(name: str, url: str) -> ChainParams:
    """The parameters of the best feasible trial of a study in a storage."""
    try:
        below = optuna.load_study(study_name=name, storage=open_storage(url))
        other = stored_spec(below)
    except KeyError:
        raise UsageError(f"start_from: no study {name!r} in {shown(url)}; run it first") from None
    best = next(ranked(ended_trials(below), other.optimize), None)
    if best is None:
        raise UsageError(f"start_from: study {name!r} has no feasible trial; run more")
    return stored_rooms(below).decode(best.params)


def _create_or_load(spec: StudySpec, storage: RDBStorage, record: dict[str, Any]) -> optuna.Study:
    """The study of a spec, created or as it is; UsageError where it was made with something else.

    Of several that begin it at once one creates it, and the others find what that one stored.
    """
    with one_creator(storage.url):
        study = optuna.create_study(
            storage=storage,
            study_name=spec.name,
            directions=list(spec.optimize.values()),
            pruner=make_pruner(spec.pruner),
            load_if_exists=True,
        )
        _settle(study, record)
        study.set_user_attr(RECORD, record)
        with warnings.catch_warnings(category=optuna.exceptions.ExperimentalWarning, action="ignore"):
            study.set_metric_names(list(spec.optimize))
    return study


def _settle(study: optuna.Study, record: dict[str, Any]) -> None:
    """Complete a record by the one that the study has; UsageError where they are of two things."""
    stored = study.user_attrs.get(RECORD)
    record["id"] = uuid.uuid4().hex[:12] if stored is None else stored["id"]
    if stored is None:
        if study.user_attrs or study.get_trials(deepcopy=False):
            raise UsageError(f"study {study.study_name!r} was not made by chamtune; choose another name")
        return
    told = {"started": record.get("started"), **stored, "spec": stored_spec(study).identity()}
    refuse_changes(study.study_name, told, record)
    record["places"] = kept_places(stored, record)
    _note_versions(study, stored, record)


def _note_versions(study: optuna.Study, stored: dict[str, Any], record: dict[str, Any]) -> None:
    """Keep the versions of the earlier trials; say it where the study goes on under others."""
    trials = len(study.get_trials(deepcopy=False))
    held = held_versions(stored, trials, record["versions"])
    record["versions"], record["later_versions"] = held[0]["versions"], held[1:]
    if held[-1]["from_trial"] == trials and len(held) > 1:
        changes = ", ".join(differences(held[-2]["versions"], held[-1]["versions"]))
        log.warning("study %s goes on under other versions from trial %d on: %s", study.study_name, trials, changes)


def stored_spec(study: optuna.Study) -> StudySpec:
    """The spec that a study was made with."""
    return parse_spec(spec_of(study.user_attrs[RECORD]), f"study {study.study_name}")


def stored_rooms(study: optuna.Study) -> ChainSpace:
    """The space that a study was made with, from where it started."""
    return stored_spec(study).space_of.starting_from(study.user_attrs[RECORD].get("started", {}))


def located_spec(study: optuna.Study) -> StudySpec:
    """The spec that a study was made with; DataError where its data or model are not to be found."""
    refuse_missing(study.study_name, study.user_attrs[RECORD])
    return stored_spec(study)


def study_names(storage: RDBStorage) -> list[str]:
    """The studies of a storage, without the one that holds the looks."""
    return [name for name in optuna.get_all_study_names(storage) if name != LOOKS]


def find_study(name: str, home: Path, url: str | None, reading: bool = True) -> optuna.Study:
    """A stored study by name, to be read alone or written, too; UsageError naming those that exist otherwise."""
    where = storage_url(home, url)
    place, elsewhere = f"storage {shown(where)}", ""
    if url is None:
        place, elsewhere = str(home), "; one that is kept elsewhere is found with --storage and the URL in its spec"
    if not may_exist(where):
        raise UsageError(f"no studies in {place}; start one with `chamtune run demo --home {home}`{elsewhere}")
    storage = open_storage(where, reading)
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        known = ", ".join(study_names(storage)) or "none"
        raise UsageError(f"no study {name!r} in {place}; there are: {known}{elsewhere}") from None
    if RECORD not in study.user_attrs:
        raise UsageError(f"study {name!r} was not made by chamtune and cannot be shown or promoted")
    return study


def ended_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The `finished` trials of a study, as they are now."""
    return finished(study.get_trials(deepcopy=False))


def finished(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Trials that count towards the budget: complete, pruned, or failed by their own parameters."""
    left_out = uncounted(trials)
    return [t for t in trials if t.state.is_finished() and t.number not in left_out]


def ranked(trials: Sequence[FrozenTrial], optimize: Mapping[str, str]) -> Iterator[FrozenTrial]:
    """Feasible trials, best first by the first metric; of several metrics, the Pareto front first."""
    sign = [-1.0 if direction == "maximize" else 1.0 for direction in optimize.values()]
    costs = {t.number: [s * v for s, v in zip(sign, t.values or (), strict=True)] for t in trials if feasible(t)}
    front = {
        n: not any(all(o <= m for o, m in zip(other, mine, strict=True)) and other != mine for other in costs.values())
        for n, mine in costs.items()
    }
    chosen = [t for t in trials if t.number in costs]
    return iter(sorted(chosen, key=lambda t: (not front[t.number], costs[t.number], t.number)))


def best_feasible(opened: OpenStudy, metric: str | None = None) -> FrozenTrial:
    """The best feasible trial by a goal, by default the first one; UsageError where there is none."""
    goals = list(opened.spec.optimize)
    place = 0 if metric is None else goals.index(metric)
    sign = -1.0 if opened.spec.optimize[goals[place]] == "maximize" else 1.0
    trials = ranked(ended_trials(opened.study), opened.spec.optimize)
    best = min(trials, key=lambda trial: sign * trial.values[place], default=None)
    if best is None:
        raise UsageError(f"study {opened.spec.name} has no feasible trial; run more, or relax its constraints")
    return best
