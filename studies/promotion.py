"""From a study to a deploy config, if the evidence carries it.

The shortlist is re-scored on select users, one trial is chosen, and it is tested once on confirm users against the
baseline, and against the config deployed at the same place if there is one. All gates must hold: feasible on confirm,
better with p below the level that the ledger grants, and a gain no smaller than the spec's minimum. A promotion of a
study in a state that was judged before returns the recorded result.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from personalization.backbones.location import EMBEDDED, PACKAGED
from personalization.data.prompts import WORDINGS
from personalization.data.records import Dataset
from personalization.deployment import FORMAT, Deployment, read_config
from personalization.errors import UsageError
from personalization.evaluation import Evaluation, all_metrics
from personalization.scoring.store import key_of
from studies.deployments import publish, published, track
from studies.deployments import roll_back_deployment as roll_back_deployment
from studies.ledger import Ledger, spent_alpha
from studies.record import versions
from studies.references import against_references
from studies.results import figure_name, study_figure
from studies.selection import Candidate, choose, feasible_on_select, mean_and_error, shortlist, verdict_metric
from studies.study import OpenStudy, finished
from tracking.report import write_report
from tracking.significance import detectable_difference, significance

CONFIRM_NOTE = "Measured on the confirm users, which no trial saw; used for one test."


@dataclass(frozen=True)
class Judgement:
    """The evidence on confirm, and the verdict."""

    promoted: bool
    reason: str
    confirm: dict[str, Any]


def promote(opened: OpenStudy, out: Path) -> dict[str, Any]:
    """Judge a study and, if it passes, write `out`; JSON-able: promoted, reason, trial, params, confirm, ...

    The verdict is in the ledger before the config is written, so that a promotion that died in between is finished by
    the same command.
    """
    ledger, state = Ledger(opened.home), _state(opened)
    with ledger.locked():
        result = ledger.closed(state)
        recorded = result is not None
        if result is None:
            result = _judge(opened, out, ledger, state)
            if result["confirm"] is not None:
                ledger.close_use(state, result)
        answer = {**_without_config(result), "recorded": recorded, "deploy": None}
        if not result["promoted"]:
            return answer
        generation, present = published(opened.home, out, state), _generation(out)
        if generation is None or present is None or present < generation:
            _refuse_other(out, present, result)
            present = generation = publish(opened.home, out, result["config"])
            track(opened, out, result, generation)
    if present == generation:
        return {**answer, "deploy": str(out), "generation": generation}
    replaced = f"{result['reason']}; generation {generation} of {out} has since been replaced by {present}"
    return {**answer, "reason": replaced, "generation": generation}


def _generation(out: Path) -> int | None:
    """The generation of the config at a place; None where there is none."""
    return int(read_config(out)["generation"]) if out.exists() else None


def _refuse_other(out: Path, present: int | None, result: dict[str, Any]) -> None:
    """The config at `out` may be replaced only by one that was tested against it."""
    if present is not None and (str(out.resolve()), present) != (result["out"], result["replaces"]):
        raise UsageError(f"{out} holds a config that this study was not tested against; give --out {result['out']}")


def _without_config(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key != "config"}


def _state(opened: OpenStudy) -> str:
    """Identifies a study and how far it has come."""
    trials = finished(opened.study.get_trials(deepcopy=False))
    identity = {key: opened.record[key] for key in ("spec", "data", "model")}
    return key_of({"url": opened.url, "study": opened.spec.name, "identity": identity, "trials": len(trials)})


def _judge(opened: OpenStudy, out: Path, ledger: Ledger, state: str) -> dict[str, Any]:
    """Select a trial and test it. Refusals before the confirm users are looked at spend nothing."""
    result: dict[str, Any] = {
        "promoted": False,
        "study": opened.spec.name,
        "trial": None,
        "params": None,
        "shortlist": [],
        "confirm": None,
        "out": str(out.resolve()),
        "replaces": _generation(out),
    }
    metric, candidates = verdict_metric(opened), shortlist(opened)
    if not candidates:
        return {**result, "reason": "no feasible trial; run more trials or relax the constraints"}
    result["shortlist"] = [_listed(candidate) for candidate in candidates]
    kept = feasible_on_select(opened, candidates)
    if not kept:
        return {**result, "reason": "no shortlisted trial keeps the constraints on the select users"}
    chosen = choose(kept, metric)
    before, _ = mean_and_error(opened.objective.evaluate(opened.rooms.BASELINE, "select"), metric)
    after, _ = mean_and_error(chosen.select, metric)
    result |= {"trial": chosen.trial, "params": asdict(chosen.params)}
    if after <= before:
        reason = f"trial {chosen.trial} is no better than the baseline on the select users"
        return {**result, "reason": reason}
    incumbent = Deployment.load(out, opened.home / "cache" / "scores") if out.exists() else None
    use = ledger.open_use(_digests(opened.splits.confirm), state, opened.spec.name)
    alpha = spent_alpha(opened.spec.promotion.alpha, use)
    baseline = opened.objective.evaluate(opened.rooms.BASELINE, "confirm")
    candidate = opened.objective.evaluate(chosen.params, "confirm")
    deployed = None if incumbent is None else _answers(incumbent, opened, baseline)
    judgement = judge(opened, baseline, candidate, deployed, alpha)
    beside = against_references(opened, "confirm", candidate)
    confirm = {**judgement.confirm, "use": use, "alpha": alpha, "references": beside}
    figure: dict[str, bytes | str] = {figure_name(opened): study_figure(opened)}
    groups = opened.objective.groups(chosen.params, "confirm")
    write_report(
        opened.home / "results" / opened.spec.name / "confirm", baseline, candidate, CONFIRM_NOTE, figure, groups
    )
    result |= {"promoted": judgement.promoted, "reason": judgement.reason, "confirm": confirm}
    if judgement.promoted:
        result["config"] = _config(opened, chosen, confirm, state)
    return result


def _digests(dataset: Dataset) -> set[str]:
    """A short digest of each question: of its user and text."""
    return {hashlib.sha256(f"{q.user_id}\n{q.text}".encode()).hexdigest()[:12] for q in dataset.questions}


def _listed(candidate: Candidate) -> dict[str, Any]:
    return {
        "trial": candidate.trial,
        "tune": candidate.tune_value,
        "select_accuracy": candidate.select.metrics["accuracy"],
        "complexity": candidate.complexity,
    }


def _answers(deployment: Deployment, opened: OpenStudy, baseline: Evaluation) -> Evaluation:
    """What the deployed config answers on the confirm users."""
    labels = tuple(deployment.config["labels"])
    answered = deployment.log_probs(opened.splits.confirm)
    columns = [labels.index(label) for label in baseline.labels]
    return Evaluation(
        baseline.labels,
        baseline.question_ids,
        baseline.user_ids,
        baseline.gold,
        answered.log_probs[:, columns],
        answered.prior_modes,
    )


def judge(
    opened: OpenStudy, baseline: Evaluation, candidate: Evaluation, incumbent: Evaluation | None, alpha: float
) -> Judgement:
    """The test on confirm and its gates."""
    metric = verdict_metric(opened)
    test = significance(baseline, candidate, metric)
    minimum = opened.spec.promotion.min_gain
    measured = all_metrics(candidate, baseline)
    broken = [f"{c.metric} {measured[c.metric]:.3f}" for c in opened.constraints if c.violation(measured[c.metric]) > 0]
    discordance = (test["helped"] + test["hurt"]) / test["n"]
    confirm = {
        **test,
        "metrics": candidate.metrics,
        "baseline_metrics": baseline.metrics,
        "detectable_difference": detectable_difference(test["n"], discordance, alpha) if discordance else None,
    }
    against = {"baseline": test}
    if incumbent is not None:
        against["deployed config"] = confirm["incumbent"] = significance(incumbent, candidate, metric)
    if broken:
        return Judgement(False, f"not feasible on the confirm users: {', '.join(broken)}", confirm)
    for name, result in against.items():
        delta, p = result["delta"], result["p_value"]
        if not (delta > 0 and p < alpha):
            reason = f"{test['metric']} not better than the {name}'s: {delta:+.3f}, p = {p:.4f}, needed p < {alpha:.4f}"
            return Judgement(False, reason, confirm)
        if delta < minimum:
            reason = f"gain in {test['metric']} over the {name} of {delta:+.3f} is below the minimum {minimum}"
            return Judgement(False, reason, confirm)
    reason = f"{test['metric']} better by {test['delta']:+.3f}, p = {test['p_value']:.4f} < {alpha:.4f}"
    return Judgement(True, reason, confirm)


def _config(opened: OpenStudy, chosen: Candidate, confirm: dict[str, Any], state: str) -> dict[str, Any]:
    """The deploy config, without its generation."""
    spec = opened.spec
    path = spec.model.path
    local = path not in (*EMBEDDED, *PACKAGED) and Path(path).is_dir()
    return {
        "format": FORMAT,
        "model": {
            **spec.model.model_dump(),
            "path": str(Path(path).resolve()) if local else path,
            "fingerprint": opened.record["model"],
        },
        "template": WORDINGS[opened.scorer.kind].template,
        **opened.objective.deployment(chosen.params),
        "fallback": {"prior_mode": "global"} if asdict(chosen.params)["prior_mode"] in ("user", "similar") else {},
        "provenance": {
            "study": spec.name,
            "study_id": opened.record["id"],
            "trial": chosen.trial,
            "state": state,
            "spec": opened.record["spec"],
            "data": opened.record["data"],
            "versions": versions(),
            "promoted_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "confirm": {
                key: confirm[key]
                for key in (
                    "n",
                    "users",
                    "baseline_accuracy",
                    "accuracy",
                    "delta_accuracy",
                    "ci95",
                    "p_accuracy",
                    "metric",
                    "delta",
                    "p_value",
                    "alpha",
                    "use",
                )
            },
        },
    }
