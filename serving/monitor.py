"""Is what was promised still so? One JSON-able report of a log.

Of the config that serves now: each constraint of its study, with an interval over users; calibration: the mean top
probability, an estimate of accuracy before a label has come, and of the answers with a label its distance from what was
right; and how it does against the other config, by users (`tracking.sequence`): of a shadow or a baseline the paired
difference of each question, of a split the two groups of users. And what drifted since it serves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from personalization.deployment import Deployment, read_config
from personalization.evaluation import Evaluation, changed
from personalization.metrics import metrics_of
from serving.arms import ALARM, sample_ratio
from serving.drift import changed_users, drifts
from serving.replay import shadowed
from serving.traffic import Traffic, read_traffic
from studies.constraints import parse_constraint
from studies.spec import RELATIVE_METRICS
from tracking.deployed import config_digest
from tracking.sequence import Interval, Tiers, paired, unpaired, verdict
from tracking.significance import user_interval, user_totals

ALONE = ("entropy", "top1_share")
"""Metrics that need no label."""
DRAWS = 200
"""Resamples of users for a constraint's interval."""
FEWEST = 100
"""Answers below which a constraint is not judged."""
MARGIN = 0.02
"""Of accuracy: what is as good as equal."""
LOSERS = 10


class Watched(NamedTuple):
    """A log read for one deployment. `own`: rows that its present content answered; `labelled`: those with a label."""

    traffic: Traffic
    config: Mapping[str, Any]
    own: NDArray[np.int64]
    labelled: NDArray[np.int64]


def watched(folder: Path, deploy: Path, baseline: Path | None = None) -> Watched:
    """A log, and what of it the deployment at a place has answered; `baseline`: what answers its labels anew."""
    traffic, config = read_traffic(folder), read_config(deploy)
    own = np.flatnonzero(np.array(traffic.configs) == config_digest(config))
    if baseline is not None:
        traffic = replace(traffic, shadow=shadowed(folder, Deployment.load(baseline), traffic))
    return Watched(traffic, config, own, own[traffic.gold[own] >= 0])


def report(found: Watched, margin: float = MARGIN, most_users: int | None = None) -> dict[str, Any]:
    """What a log says of a deployment; JSON-able."""
    traffic, config, own, labelled = found
    since = traffic.only(own)
    return {
        "answers": len(traffic),
        "of_this_config": len(own),
        "labelled": len(labelled),
        "users": len({traffic.users[row] for row in own}),
        "generation": int(config["generation"]),
        "config": config_digest(config),
        "constraints": constraints(traffic, own, config["provenance"].get("spec", {}).get("constraints", {})),
        "calibration": calibration(traffic, own, labelled),
        "ratio": ratio(traffic),
        "comparison": comparison(compared(traffic, own, labelled), margin, most_users),
        "losers": losers(traffic, labelled),
        "drift": drifts(since),
        "changed_users": changed_users(since),
    }


def constraints(traffic: Traffic, own: NDArray[np.int64], told: Mapping[str, str]) -> list[dict[str, Any]]:
    """Each constraint: metric, bound, value, interval (99 %), state: holds, doubtful, broken, or why not measured."""
    return [_constraint(traffic, own, metric, bound) for metric, bound in told.items()]


def _constraint(traffic: Traffic, own: NDArray[np.int64], metric: str, text: str) -> dict[str, Any]:
    named = {"metric": metric, "bound": text}
    rows = own if metric in ALONE else own[traffic.gold[own] >= 0]
    if metric in RELATIVE_METRICS:
        rows = np.array([row for row in rows if int(row) in traffic.shadow], dtype=np.int64)
    if len(rows) < FEWEST:
        return {**named, "value": None, "interval": None, "state": f"not measured: {len(rows)} answers of {FEWEST}"}
    found = traffic.evaluation(rows)
    other = None
    if metric in RELATIVE_METRICS:
        other = traffic.evaluation(rows, np.array([traffic.shadow[int(row)] for row in rows]))
    if metric not in metrics_of(traffic.labels) and metric not in RELATIVE_METRICS:
        return {**named, "value": None, "interval": None, "state": "not measured: no such metric of these labels"}
    bound = parse_constraint(metric, text)
    measure = _measure(found, other, metric)
    value, (low, high) = measure(np.arange(len(rows))), _interval(found, measure)
    safest, worst = (low, high) if bound.sign > 0 else (high, low)
    state = "broken" if bound.violation(safest) > 0 else "holds" if bound.violation(worst) <= 0 else "doubtful"
    return {**named, "value": round(value, 4), "interval": [round(low, 4), round(high, 4)], "state": state}


Measure = Callable[[NDArray[np.int64]], float]


def _measure(found: Evaluation, other: Evaluation | None, metric: str) -> Measure:
    """A metric of some rows of answers, against others where it is one of a change."""
    if metric in RELATIVE_METRICS:
        assert other is not None
        each = changed(other, found)[metric]
        return lambda rows: float(each[rows].mean())
    of = metrics_of(found.labels)[metric].measure
    return lambda rows: of(found.log_probs[rows], found.predicted[rows], found.gold[rows])


def _interval(found: Evaluation, measure: Measure) -> tuple[float, float]:
    """Percentiles over resampled users."""
    users, of = found.users
    rows = [np.flatnonzero(of == number) for number in range(len(users))]
    rng = np.random.default_rng(0)
    draws = (rng.integers(0, len(users), len(users)) for _ in range(DRAWS))
    values = [measure(np.concatenate([rows[number] for number in drawn])) for drawn in draws]
    return float(np.percentile(values, 0.5)), float(np.percentile(values, 99.5))


def calibration(traffic: Traffic, own: NDArray[np.int64], labelled: NDArray[np.int64]) -> dict[str, Any]:
    """The estimate of accuracy, and on what has labels: accuracy, the estimate for the same, and the gap by users."""
    top = np.exp(traffic.log_probs.max(axis=1))
    found: dict[str, Any] = {"estimate": round(float(top[own].mean()), 4) if len(own) else None, "accuracy": None}
    if not len(labelled):
        return {**found, "gap": None, "interval": None, "state": "no label has come"}
    seen = traffic.evaluation(labelled)
    gaps, sizes = user_totals(seen, top[labelled] - seen.correct)
    low, high = user_interval(gaps, sizes)
    state = "too sure" if low > 0 else "not sure enough" if high < 0 else "holds"
    gap = float(gaps.sum() / sizes.sum())
    said = {"accuracy": round(seen.metrics["accuracy"], 4), "gap": round(gap, 4), "state": state}
    return {**found, **said, "interval": [round(low, 4), round(high, 4)]}


def ratio(traffic: Traffic) -> dict[str, Any] | None:
    """Users of both arms of a split, and whether their ratio can be chance; None without a split."""
    if traffic.split == 0:
        return None
    seen = {(user, arm) for user, arm, named in zip(traffic.users, traffic.arms, traffic.named, strict=True) if named}
    first, second = (sum(arm == own for _, arm in seen) for own in ("a", "b"))
    p = sample_ratio(first, second, traffic.split)
    return {"a": first, "b": second, "share": traffic.split, "p": p, "fault": p < ALARM}


class Compared(NamedTuple):
    """What is observed of two configs, in the order of the questions: users, values, bool [m] whether it is of arm b.

    `paired`: a value is a difference on one question, and all are of arm a; `split`: whether an answer was right.
    """

    kind: Literal["paired", "split"]
    users: tuple[str, ...]
    values: NDArray[np.float64]
    in_b: NDArray[np.bool_]


def compared(traffic: Traffic, own: NDArray[np.int64], labelled: NDArray[np.int64]) -> Compared | None:
    """The observations that a comparison is made of; None where there is no other config."""
    rows = np.array([row for row in labelled if int(row) in traffic.shadow], dtype=np.int64)
    right = (traffic.predicted == traffic.gold).astype(np.float64)
    if len(rows):
        theirs = np.array([traffic.shadow[int(row)].argmax() for row in rows])
        values = right[rows] - (theirs == traffic.gold[rows])
        return Compared("paired", _users(traffic, rows), values, np.zeros(len(rows), dtype=bool))
    if traffic.split == 0:
        return None
    mine, in_b = set(own.tolist()), np.array([arm == "b" for arm in traffic.arms])
    known = traffic.labelled
    rows = np.array([row for row in known if traffic.named[row] and (in_b[row] or row in mine)], dtype=np.int64)
    return Compared("split", _users(traffic, rows), right[rows], in_b[rows])


def _users(traffic: Traffic, rows: NDArray[np.int64]) -> tuple[str, ...]:
    return tuple(traffic.users[row] for row in rows)


def looks(found: Compared, places: Sequence[int]) -> list[Interval]:
    """The interval after each of these numbers of observations, which rise."""
    arms, out, wanted = (Tiers(), Tiers()), list[Interval](), set(places)
    for number in range(len(found.users) + 1):
        if number in wanted:
            out.append(paired(arms[0]) if found.kind == "paired" else unpaired(*arms))
        if number < len(found.users):
            arms[int(found.in_b[number])].add(found.users[number], float(found.values[number]))
    return out


def comparison(found: Compared | None, margin: float, most_users: int | None) -> dict[str, Any] | None:
    """The deployment's accuracy minus the other config's, by users; None where there is no other one."""
    if found is None:
        return None
    (last,) = looks(found, [len(found.users)])
    return _said(last, found.kind, margin, most_users)


def _said(found: Interval, kind: str, margin: float, most_users: int | None) -> dict[str, Any]:
    finite = bool(np.isfinite([found.low, found.high]).all())
    return {
        "kind": kind,
        "mean": round(found.mean, 4),
        "interval": [round(found.low, 4), round(found.high, 4)] if finite else None,
        "users": found.users,
        "labels_by_user": found.labels,
        "margin": margin,
        "verdict": verdict(found, margin, most_users),
    }


def losers(traffic: Traffic, labelled: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Users who are answered worse than by the other config, the worst first: JSON-able, with their shrunken loss.

    A user's mean difference d over n labels is drawn to the mean of all, m + (d - m) T / (T + s / n), where s is the
    variance inside users and T that between them (normal-normal, by moments).
    """
    rows = np.array([row for row in labelled if int(row) in traffic.shadow], dtype=np.int64)
    if not len(rows):
        return []
    theirs = np.array([traffic.shadow[int(row)].argmax() for row in rows])
    values = (traffic.predicted[rows] == traffic.gold[rows]).astype(np.float64) - (theirs == traffic.gold[rows])
    users, of = traffic.evaluation(rows).users
    sizes = np.bincount(of)
    means = np.bincount(of, weights=values) / sizes
    inside = float(((values - means[of]) ** 2).sum() / max(1, len(rows) - len(users)))
    between = max(0.0, float(means.var() - (inside / sizes).mean()))
    middle = float(means.mean())
    weight = between / (between + inside / sizes) if between > 0 else np.zeros(len(users))
    shrunken = middle + weight * (means - middle)
    order = [number for number in np.argsort(shrunken, kind="stable") if shrunken[number] < 0][:LOSERS]
    loss = -shrunken
    return [{"user": users[n], "labels": int(sizes[n]), "loss": round(float(loss[n]), 4)} for n in order]


def faults(found: Mapping[str, Any]) -> list[str]:
    """What a rollback is for: broken constraints, and a deployment that is worse."""
    broken = [f"{one['metric']} {one['bound']} is broken" for one in found["constraints"] if one["state"] == "broken"]
    worse = found["comparison"] is not None and found["comparison"]["verdict"] == "worse"
    return broken + (["it is worse than the other config"] if worse else [])


def reasons(found: Mapping[str, Any]) -> tuple[list[str], str | None]:
    """What tuning again is for, faults and drift, and since when the latest drift is there; None without one."""
    drift = [f"drift of {one['what']}: {one['before']} -> {one['after']}" for one in found["drift"]]
    return [*faults(found), *drift], max((one["since"] for one in found["drift"]), default=None)
