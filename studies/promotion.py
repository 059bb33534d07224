"""From a study to a deploy config, if the evidence carries it.

The shortlist is re-scored on select users, one trial is chosen, and it is tested once on confirm users against the
baseline, and against the config deployed at the same place if there is one. All gates must hold: feasible on confirm,
better with p below the level that the ledger grants, and a gain no smaller than the spec's minimum. A promotion of a
study in a state that was judged before returns the recorded result.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from personalization.backbones.location import EMBEDDED
from personalization.deployment import Deployment, read_config
from personalization.evaluation import Evaluation
from personalization.scoring.store import key_of
from studies.deployments import publish, roll_back
from studies.ledger import Ledger, spent_alpha
from studies.record import versions
from studies.selection import Candidate, choose, shortlist
from studies.study import OpenStudy, finished
from tracking.report import write_report
from tracking.significance import detectable_difference, significance
from tracking.spool import OFF, Sender, Spool, tracking_uri

CONFIRM_NOTE = "Measured on the confirm users, which no trial saw; used for one test."
FLUSH_S = 60


@dataclass(frozen=True)
class Judgement:
    """The evidence on confirm, and the verdict."""

    promoted: bool
    reason: str
    confirm: dict[str, Any]


def promote(opened: OpenStudy, out: Path) -> dict[str, Any]:
    """Judge a study and, if it passes, write `out`; JSON-able: promoted, reason, trial, params, confirm, ..."""
    ledger = Ledger(opened.home)
    fingerprint = opened.record["data"]["confirm"]
    state = _state(opened)
    with ledger.locked():
        recorded = ledger.closed(fingerprint, state)
        if recorded is not None:
            if recorded["promoted"] and not out.exists():
                recorded["generation"] = publish(opened.home, out, recorded["config"])
            return {**_without_config(recorded), "recorded": True, "deploy": str(out) if recorded["promoted"] else None}
        result = _judge(opened, out, ledger, fingerprint, state)
        if result["promoted"]:
            result["generation"] = publish(opened.home, out, result["config"])
        if result["confirm"] is not None:
            ledger.close_use(fingerprint, state, result)
    if result["promoted"]:
        _track(opened, out, result)
    return {**_without_config(result), "recorded": False, "deploy": str(out) if result["promoted"] else None}


def _without_config(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key != "config"}


def _state(opened: OpenStudy) -> str:
    """Identifies a study and how far it has come."""
    trials = finished(opened.study.get_trials(deepcopy=False))
    identity = {key: opened.record[key] for key in ("spec", "data", "model")}
    return key_of({"url": opened.url, "study": opened.spec.name, "identity": identity, "trials": len(trials)})


def _judge(opened: OpenStudy, out: Path, ledger: Ledger, fingerprint: str, state: str) -> dict[str, Any]:
    """Select a trial and test it. Refusals before the confirm set is opened spend nothing."""
    result: dict[str, Any] = {
        "promoted": False,
        "study": opened.spec.name,
        "trial": None,
        "params": None,
        "shortlist": [],
        "confirm": None,
    }
    candidates = shortlist(opened)
    if not candidates:
        return {**result, "reason": "no feasible trial; run more trials or relax the constraints"}
    chosen = choose(candidates)
    before = opened.objective.evaluate(opened.rooms.BASELINE, "select").metrics["accuracy"]
    result |= {
        "trial": chosen.trial,
        "params": asdict(chosen.params),
        "shortlist": [_listed(candidate) for candidate in candidates],
        "select_baseline_accuracy": before,
    }
    if chosen.select.metrics["accuracy"] <= before:
        reason = f"trial {chosen.trial} is no better than the baseline on the select users ({before:.3f})"
        return {**result, "reason": reason}
    use = ledger.open_use(fingerprint, state, opened.spec.name)
    alpha = spent_alpha(opened.spec.promotion.alpha, use)
    baseline = opened.objective.evaluate(opened.rooms.BASELINE, "confirm")
    candidate = opened.objective.evaluate(chosen.params, "confirm")
    judgement = judge(opened, baseline, candidate, _incumbent(out, opened, baseline), alpha)
    confirm = {**judgement.confirm, "use": use, "alpha": alpha}
    write_report(opened.home / "results" / opened.spec.name / "confirm", baseline, candidate, CONFIRM_NOTE)
    result |= {"promoted": judgement.promoted, "reason": judgement.reason, "confirm": confirm}
    if judgement.promoted:
        result["config"] = _config(opened, chosen, confirm)
    return result


def _listed(candidate: Candidate) -> dict[str, Any]:
    return {
        "trial": candidate.trial,
        "tune": candidate.tune_value,
        "select_accuracy": candidate.select.metrics["accuracy"],
        "complexity": candidate.complexity,
    }


def _incumbent(out: Path, opened: OpenStudy, baseline: Evaluation) -> Evaluation | None:
    """What the deployed config answers on the confirm users."""
    if not out.exists():
        return None
    deployment = Deployment.load(out, opened.home / "cache" / "scores")
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
    test = significance(baseline, candidate)
    minimum = opened.spec.promotion.min_gain
    broken = [
        f"{c.metric} {candidate.metrics.get(c.metric, test.get(c.metric)):.3f}"
        for c in opened.constraints
        if c.violation(float(candidate.metrics.get(c.metric, test.get(c.metric, test["delta_accuracy"])))) > 0
    ]
    confirm = {
        **test,
        "metrics": candidate.metrics,
        "baseline_metrics": baseline.metrics,
        "detectable_difference": detectable_difference(test["n"], max(test["changed_rate"], 0.01), alpha),
    }
    against = {"baseline": test}
    if incumbent is not None:
        against["deployed config"] = confirm["incumbent"] = significance(incumbent, candidate)
    if broken:
        return Judgement(False, f"not feasible on the confirm users: {', '.join(broken)}", confirm)
    for name, result in against.items():
        delta, p = result["delta_accuracy"], result["p_value"]
        if not (delta > 0 and p < alpha):
            reason = f"not better than the {name}: {delta:+.3f}, p = {p:.4f}, needed p < {alpha:.4f}"
            return Judgement(False, reason, confirm)
        if delta < minimum:
            return Judgement(False, f"gain over the {name} of {delta:+.3f} is below the minimum {minimum}", confirm)
    reason = (
        f"better by {test['delta_accuracy']:+.3f}, p = {test['p_value']:.4f} < {alpha:.4f}, on {test['users']} users"
    )
    return Judgement(True, reason, confirm)


def _config(opened: OpenStudy, chosen: Candidate, confirm: dict[str, Any]) -> dict[str, Any]:
    """The deploy config, without its generation."""
    spec = opened.spec
    path = spec.model.path
    local = path not in EMBEDDED and Path(path).is_dir()
    return {
        "format": 1,
        "model": {
            **spec.model.model_dump(),
            "path": str(Path(path).resolve()) if local else path,
            "fingerprint": opened.record["model"],
        },
        **opened.objective.deployment(chosen.params),
        "fallback": {"prior_mode": "global"} if asdict(chosen.params)["prior_mode"] == "user" else {},
        "provenance": {
            "study": spec.name,
            "trial": chosen.trial,
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
                    "p_value",
                    "alpha",
                    "use",
                )
            },
        },
    }


def _track(opened: OpenStudy, out: Path, result: dict[str, Any]) -> None:
    """Spool the promoted result and its registry version, and let MLflow have them."""
    if opened.spec.tracking == OFF:
        return
    spool = Spool(opened.home, opened.spec.name)
    folder = opened.home / "results" / opened.spec.name / "confirm"
    (folder / "deploy").mkdir(exist_ok=True)
    (folder / "deploy" / "deploy.yaml").write_bytes(out.read_bytes())
    now = time.time_ns() // 1_000_000
    key = f"promoted-{result['trial']}-{result['generation']}"
    spool.append(
        {
            "kind": "result",
            "name": "promoted",
            "key": key,
            "folder": str(folder.resolve()),
            "params": result["params"],
            "metrics": {
                **result["confirm"]["metrics"],
                "delta_accuracy": result["confirm"]["delta_accuracy"],
                "p_value": result["confirm"]["p_value"],
            },
            "tags": {"measured_on": "confirm", "generation": str(result["generation"])},
            "started_ms": now,
            "ended_ms": now,
        }
    )
    spool.append({"kind": "model", "name": registry_name(out), "key": key, "generation": result["generation"]})
    Sender(spool, tracking_uri(opened.home, opened.spec.tracking)).finish(FLUSH_S)


def registry_name(out: Path) -> str:
    """The registered model of a deploy config."""
    return f"chamtune-{out.stem}"


def roll_back_deployment(home: Path, out: Path) -> tuple[int, int]:
    """Bring back the config that the present one replaced, and move the registry's alias: (generation, restored)."""
    with Ledger(home).locked():
        study = read_config(out)["provenance"]["study"]
        generation, restored = roll_back(home, out)
    spool = Spool(home, study)
    if spool.path.exists():
        spool.append({"kind": "rollback", "name": registry_name(out), "generation": restored})
        uri = spool.sent().get("uri")
        if uri is not None:
            Sender(spool, uri).finish(FLUSH_S)
    return generation, restored
