"""From a study to a deploy config, if the evidence carries it.

A trial is chosen (`selection`), learns from the users of tune and select together (`promotion.refit`), and is looked at
once on the confirm users, beside the baseline and beside the config that is deployed at the same place, if there is
one. With exchanged histories, both say what of the gain is personal (`personal`). What the look gave is kept with the
studies (`evidence`) before anything else is done with it. The gates (`judgement`) are applied to it each time, by the
terms that the spec states now; a study that was looked at in this state is not looked at again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from personalization.backbones.location import is_path
from personalization.data.exchange import exchange
from personalization.deployment import FORMAT, Deployment, read_config
from personalization.errors import DataError, UsageError
from personalization.evaluation import Evaluation, all_metrics
from personalization.files import locked
from personalization.scoring.store import key_of
from search_spaces import ChainParams
from studies.record import versions
from studies.results import figure_name, groups_of, study_figure
from studies.study import OpenStudy, ended_trials
from studies.verdict.coldstart import NAMES, cold_start
from studies.verdict.cost import cost_ms, cost_of
from studies.verdict.deployments import publish, published, set_aside, stands, track, untracked
from studies.verdict.evidence import Evidence, Look
from studies.verdict.judgement import judge
from studies.verdict.personal import answers_of, parts
from studies.verdict.references import against_references
from studies.verdict.selection import Candidate, choose, feasible, goals, shortlist
from tracking.detection import can_show, design_effect, detectable_difference, intraclass, smallest_p
from tracking.report import LAST, write_report
from tracking.significance import paired_test, significance

CONFIRM_NOTE = "Measured on the confirm users, which no trial saw; used for one test."


class Incumbent(NamedTuple):
    """What stands at the place of the deploy config: a generation, or why it cannot be read."""

    generation: int | None = None
    state: str | None = None
    deployment: Deployment | None = None
    unreadable: str | None = None


def promote(
    opened: OpenStudy, out: Path, replace_unreadable: bool = False, with_cold_start: bool = True
) -> dict[str, Any]:
    """Judge a study and, if it passes, write the folder `out`; JSON-able: promoted, reason, trial, params, confirm, ...

    `replace_unreadable`: a config at `out` that cannot be read is set aside untested; else it is a DataError, before
    any look. `with_cold_start`: describe what is promoted by how much is known (`coldstart`). A promotion that died
    between look and config is finished by the same command.
    """
    incumbent = _incumbent(opened, out, replace_unreadable)
    evidence = Evidence(opened.storage)
    evidence.take_over(opened.home)
    terms, state = opened.spec.promotion, _state(opened)
    result: dict[str, Any] = {
        "promoted": False,
        "study": opened.spec.name,
        "trial": None,
        "params": None,
        "shortlist": [],
        "confirm": None,
        "cold_start": None,
        "recorded": False,
        "deploy": None,
    }
    look = evidence.look(opened.record["id"], state)
    if look is None or look.found is None:
        chosen, why = _choose(opened, result)
        if chosen is None:
            return {**result, "reason": why}
        refused = _cannot_pass(opened, evidence) if look is None else None
        if refused is not None:
            return {**result, "reason": refused}
        look = evidence.open(opened.record["id"], state, opened.spec.name, opened.splits.confirm, terms.alpha)
        level = evidence.granted(look, terms.alpha)
        refit = refits(opened, chosen.params)
        opened = replace(opened, objective=opened.objective.refitting(refit))
        measured = _measure(opened, chosen.trial, chosen.params, result["shortlist"], (out, incumbent), level)
        look.found = {**measured, "refit": refit}
        evidence.close(look, look.found, look.found["tests"][goals(opened)[0]]["delta"])
    else:
        result["recorded"] = True
        opened = replace(opened, objective=opened.objective.refitting(look.found.get("refit", False)))
        level = evidence.granted(look, terms.alpha)
    _report(opened, look.found, state)
    result |= _judged(opened, evidence, look, level)
    if not result["promoted"]:
        return result
    if with_cold_start:
        result["cold_start"] = cold_start(opened, _params(opened, look.found), state, _folder(opened))
    return _finish(opened, out, incumbent, result, state)


def refits(opened: OpenStudy, params: ChainParams) -> bool:
    """Whether these parameters are fitted on the select users, too, before they are tested."""
    told = opened.spec.promotion.refit
    wanted = not opened.objective.learned_labels(params) if told is None else told
    return wanted and bool(opened.splits.select.questions)


def _judged(opened: OpenStudy, evidence: Evidence, look: Look, level: float) -> dict[str, Any]:
    """What a look found, and the verdict by the gates."""
    found = look.found
    assert found is not None
    verdict = judge(found, opened.constraints, opened.spec.promotion, goals(opened), level)
    chosen_by = evidence.chosen_by(opened.splits.confirm, opened.record["id"])
    confirm = {**found, "use": look.use, "alpha": level, "chosen_by": chosen_by}
    return {**{key: found[key] for key in ("trial", "params", "shortlist")}, "confirm": confirm, **verdict._asdict()}


def _finish(opened: OpenStudy, out: Path, incumbent: Incumbent, result: dict[str, Any], state: str) -> dict[str, Any]:
    """Write the config of what has passed the gates, if it does not stand there yet."""
    found = result["confirm"]
    if incumbent.state == state:
        if incumbent.generation is not None and untracked(opened, out, incumbent.generation, found["trial"]):
            track(opened, out, result, incumbent.generation)
        return {**result, "deploy": str(out), "generation": incumbent.generation}
    with locked(opened.home / "deployments" / ".lock"):
        generation, present = published(opened.home, out, state), incumbent.generation
        if generation is not None and present is not None and present >= generation:
            replaced = f"{result['reason']}; generation {generation} of {out} has since been replaced by {present}"
            return {**result, "reason": replaced, "generation": generation}
        if incumbent.unreadable is not None:
            set_aside(out)
        elif present is not None and (str(out.resolve()), present) != (found["out"], found["replaces"]):
            raise UsageError(f"{out} holds a config that this study was not tested against; give --out {found['out']}")
        config = _config(opened, found, state)
        if incumbent.unreadable is not None:
            config["provenance"]["replaced_unreadable"] = incumbent.unreadable
        generation = publish(opened.home, out, config, opened.objective.fitted(_params(opened, found)))
    track(opened, out, result, generation)
    return {**result, "deploy": str(out), "generation": generation}


def _params(opened: OpenStudy, found: Mapping[str, Any]) -> ChainParams:
    """The parameters that a look was about."""
    return opened.rooms.of_flat(found["params"])


def _state(opened: OpenStudy) -> str:
    """Identifies a study and how far it has come."""
    return key_of({"id": opened.record["id"], "trials": len(ended_trials(opened.study))})


def _incumbent(opened: OpenStudy, out: Path, replace_unreadable: bool) -> Incumbent:
    """The config at a place, tried on a question: what cannot answer is reported before any look."""
    if not stands(out):
        return Incumbent()
    try:
        config = read_config(out)
        deployment = Deployment.load(out)
        deployment.predict(opened.splits.tune.questions[:1])
    except DataError as error:
        if replace_unreadable:
            return Incumbent(unreadable=str(error))
        raise DataError(
            f"the config to be replaced cannot be used: {error}; nothing was looked at. Restore it, or set it aside "
            "untested with --replace-unreadable"
        ) from error
    return Incumbent(int(config["generation"]), config["provenance"].get("state"), deployment)


def _choose(opened: OpenStudy, result: dict[str, Any]) -> tuple[Candidate | None, str]:
    """The trial to look at, or why there is none; notes the shortlist in the result."""
    found, terms, metrics = shortlist(opened), opened.spec.promotion, goals(opened)
    if not found.candidates:
        return None, "no feasible trial; run more trials or relax the constraints"
    users = " and ".join(found.parts)
    result["shortlist"] = [
        {
            "trial": candidate.trial,
            "tune": candidate.tune_value,
            "judged_on": users,
            "accuracy": candidate.seen.metrics["accuracy"],
            "complexity": candidate.complexity,
        }
        for candidate in found.candidates
    ]
    kept = feasible(found, opened.constraints)
    if not kept:
        return None, f"no shortlisted trial keeps the constraints on the {users} users"
    chosen = choose(found, kept, metrics, terms.margins, terms.alpha)
    if chosen is None:
        return None, f"no shortlisted trial is better than the baseline on the {users} users"
    result |= {"trial": chosen.trial, "params": chosen.params.flat()}
    return chosen, ""


def _cannot_pass(opened: OpenStudy, evidence: Evidence) -> str | None:
    """Why no result on these confirm users could be promoted, whatever it is; None where one could."""
    level = evidence.next_level(opened.splits.confirm, opened.spec.promotion.alpha)
    users = len({q.user_id for q in opened.splits.confirm.questions})
    if level <= 0:
        return "earlier looks at these confirm users have used up their level; give users that nobody looked at"
    if not can_show(users, level):
        return (
            f"{users} confirm users cannot show anything: the smallest p that they allow is {smallest_p(users):.2g}, "
            f"needed p < {level:.2g}; nothing was looked at. Give more users, or a larger confirm share"
        )
    return None


def _measure(
    opened: OpenStudy,
    trial: int,
    params: ChainParams,
    listed: list[dict[str, Any]],
    place: tuple[Path, Incumbent],
    level: float,
) -> dict[str, Any]:
    """The evidence of a look, JSON-able."""
    metrics, (out, incumbent) = goals(opened), place
    swapped, plain = exchange(opened.splits.confirm), opened.rooms.BASELINE
    before, after = (answers_of(opened, asked, "confirm", swapped) for asked in (plain, params))
    baseline, candidate = before.own, after.own
    found = significance(baseline, candidate, metrics, level)
    changed = candidate.correct.astype(np.int64) - baseline.correct.astype(np.int64)
    owners = candidate.users[1]
    n = found["n"] / design_effect(intraclass(changed, owners), owners)
    discordance = (found["helped"] + found["hurt"]) / found["n"]
    beside = None
    if incumbent.deployment is not None:
        answers = _answers(incumbent.deployment, opened, baseline)
        beside = {metric: paired_test(answers, candidate, metric, level) for metric in metrics}
    return {
        **found,
        "trial": trial,
        "params": params.flat(),
        "shortlist": listed,
        "metrics": all_metrics(candidate, baseline),
        "baseline_metrics": baseline.metrics,
        "detectable_difference": detectable_difference(n, discordance, level) if discordance else None,
        "incumbent": beside,
        "parts": parts(before, after, swapped, metrics[0], level),
        "cost": {**cost_of(opened, params, trial)._asdict(), "baseline_ms": round(cost_ms(opened, plain), 2)},
        "references": against_references(opened, "confirm", candidate, metrics[0]),
        "out": str(out.resolve()),
        "replaces": incumbent.generation,
    }


def _answers(deployment: Deployment, opened: OpenStudy, baseline: Evaluation) -> Evaluation:
    """What the deployed config answers on the confirm users."""
    return replace(baseline, log_probs=deployment.aligned(opened.splits.confirm))


def _folder(opened: OpenStudy) -> Path:
    """Where the result of a look is written."""
    return opened.home / "results" / opened.spec.name / "confirm"


def _report(opened: OpenStudy, found: Mapping[str, Any], state: str) -> None:
    """The result folder of a look, written once its evidence is kept, by the next promotion where this one dies.

    Its last file says of which state it is. Looks of earlier versions lack what a report needs.
    """
    last = _folder(opened) / LAST
    if "parts" not in found or (last.is_file() and json.loads(last.read_bytes()).get("state", state) == state):
        return
    params = _params(opened, found)
    baseline, candidate = (opened.objective.evaluate(p, "confirm") for p in (opened.rooms.BASELINE, params))
    figure: dict[str, bytes | str] = {figure_name(opened): study_figure(opened)}
    groups = groups_of(opened, params, "confirm")
    for name in (LAST, *NAMES):
        (_folder(opened) / name).unlink(missing_ok=True)
    told = {"state": state, "parts": found["parts"], "cost": found["cost"]}
    write_report(_folder(opened), baseline, candidate, CONFIRM_NOTE, figure, groups, told)


KEPT = (
    "n", "users", "baseline_accuracy", "accuracy", "delta_accuracy", "ci95", "p_accuracy", "tests", "parts", "cost",
    "alpha", "use",
)  # fmt: skip
"""What a deploy config says of its evidence; looks of earlier versions lack some."""


def _lasting(model: str) -> str:
    """The place of a model from any folder."""
    return str(Path(model).resolve()) if is_path(model) else model


def _config(opened: OpenStudy, confirm: dict[str, Any], state: str) -> dict[str, Any]:
    """The deploy config, without its generation and the chain."""
    spec, tune, retriever = opened.spec, opened.splits.tune, opened.scorer.retriever
    return {
        "format": FORMAT,
        "model": {
            **spec.model.model_dump(),
            "path": _lasting(spec.model.path),
            "revision": opened.record["revision"],
            "fingerprint": opened.record["model"],
            "retriever": None
            if retriever is None
            else {
                "path": _lasting(retriever.model),
                "revision": retriever.commit,
                "device": retriever.device,
                "fingerprint": retriever.fingerprint,
            },
        },
        "task": tune.task.model_dump(mode="json", exclude_defaults=True),
        "labels": list(tune.labels),
        "provenance": {
            "study": spec.name,
            "study_id": opened.record["id"],
            "trial": confirm["trial"],
            "state": state,
            "spec": opened.record["spec"],
            "data": opened.record["data"],
            "versions": versions(),
            "refit": confirm.get("refit", False),
            "promoted_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "confirm": {key: confirm[key] for key in KEPT if key in confirm},
        },
    }
