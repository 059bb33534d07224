"""Is what was promised still so? One JSON-able report of a log.

Of the config that serves now: each constraint of its study, with an interval over users, of all its answers and of what
came lately; calibration: the mean top probability, an estimate of accuracy before a label has come, and of the answers
with a label its distance from what was right; and how it does against the other config, by users (`tracking.sequence`):
of a shadow or a baseline the paired difference of each question, of a split the two groups of users. And what drifted
since it serves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from personalization.deployment import Deployment, read_config
from personalization.evaluation import Evaluation, changed
from personalization.metrics import metrics_of
from serving.arms import ALARM, sample_ratio
from serving.drift import changed_users, drifts
from serving.replay import shadowed
from serving.traffic import Traffic, about, read_traffic
from studies.constraints import Constraint, parse_constraint
from studies.spec import RELATIVE_METRICS
from tracking.deployed import config_digest
from tracking.sequence import FEWEST_USERS, Interval, Tiers, paired, unpaired, verdict
from tracking.significance import user_interval, user_totals

ALONE = ("entropy", "top1_share")
"""Metrics that need no label."""
DRAWS = 200
"""Resamples of users for a constraint's interval."""
FEWEST = 100
"""Answers below which a constraint is not judged."""
NEWEST = 0.25
"""Share of the answers that came lately, where nothing drifted."""
LEVEL = 0.001
"""Of a constraint's interval, for many looks: of simulated deployments whose answers stay at the bound, 2 % are ever
called broken since a drift elsewhere. Percentiles of resampled users alarmed in 8 to 47 %."""
MARGIN = 0.02
"""Of accuracy: what is as good as equal."""
LOSERS = 10
"""Users who are listed."""


class Watched(NamedTuple):
    """A log read for one deployment. `own`: rows that its present content answered; `labelled`: those with a label.

    `other`: the folder of the config that it is compared with; None without one.
    """

    traffic: Traffic
    config: Mapping[str, Any]
    own: NDArray[np.int64]
    labelled: NDArray[np.int64]
    other: str | None


def watched(folder: Path, deploy: Path, baseline: Path | None = None) -> Watched:
    """A log, and what of it the deployment at a place has answered; `baseline`: what answers its labels anew."""
    traffic, config = read_traffic(folder), read_config(deploy)
    own = np.flatnonzero(traffic.configs == config_digest(config))
    if baseline is not None:
        traffic = replace(traffic, shadow=shadowed(folder, Deployment.load(baseline), traffic), left_out=0)
    other = about(folder).get("other") if baseline is None else str(baseline)
    return Watched(traffic, config, own, own[traffic.gold[own] >= 0], other)


def report(found: Watched, margin: float = MARGIN, most_users: int | None = None) -> dict[str, Any]:
    """What a log says of a deployment; JSON-able."""
    traffic, config, own, labelled, other = found
    since = traffic.only(own)
    drift, told = drifts(since), config["provenance"].get("spec", {}).get("constraints", {})
    return {
        "answers": len(traffic),
        "of_this_config": len(own),
        "labelled": len(labelled),
        "users": len(set(traffic.users[own])),
        "generation": int(config["generation"]),
        "config": config_digest(config),
        "constraints": constraints(traffic, own, told, drift),
        "calibration": calibration(traffic, own, labelled),
        "ratio": ratio(traffic),
        "other": other,
        "left_out": traffic.left_out,
        "comparison": comparison(compared(traffic, own, labelled), margin, most_users),
        "losers": losers(traffic, labelled),
        "drift": drift,
        "changed_users": changed_users(since),
    }


def constraints(
    traffic: Traffic, own: NDArray[np.int64], told: Mapping[str, str], drift: Sequence[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Each constraint: metric, bound, value, interval (99.9 %), state: holds, doubtful, broken, or why not measured.

    `lately`: the same of what came since the latest drift, None where that is everything.
    """
    return [_constraint(traffic, own, metric, bound, drift) for metric, bound in told.items()]


def _constraint(
    traffic: Traffic, own: NDArray[np.int64], metric: str, text: str, drift: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    named = {"metric": metric, "bound": text, "value": None, "interval": None, "lately": None}
    rows = own if metric in ALONE else own[traffic.gold[own] >= 0]
    if metric in RELATIVE_METRICS:
        rows = _shadowed(traffic, rows)
    if len(rows) < FEWEST:
        return {**named, "state": f"not measured: {len(rows)} answers of {FEWEST}"}
    if metric not in metrics_of(traffic.labels) and metric not in RELATIVE_METRICS:
        return {**named, "state": "not measured: no such metric of these labels"}
    bound = parse_constraint(metric, text)
    lately = _lately(traffic, rows, bound, [one["since"] for one in drift])
    return {**named, **_judged(traffic, rows, bound), "lately": lately}


def _judged(traffic: Traffic, rows: NDArray[np.int64], bound: Constraint) -> dict[str, Any]:
    """Value, interval and state of a constraint on some answers; fewer than `FEWEST_USERS` users are not judged."""
    found, measure = _measured(traffic, rows, bound.metric)
    value, users = measure(np.arange(len(rows))), len(found.users[0])
    if users < FEWEST_USERS:
        state = f"not measured: {users} users of {FEWEST_USERS}"
        return {"value": round(value, 4), "interval": None, "state": state}
    low, high = _interval(found, measure, value)
    safest, worst = (low, high) if bound.sign > 0 else (high, low)
    state = "broken" if bound.violation(safest) > 0 else "holds" if bound.violation(worst) <= 0 else "doubtful"
    return {"value": round(value, 4), "interval": [round(low, 4), round(high, 4)], "state": state}


def _lately(
    traffic: Traffic, rows: NDArray[np.int64], bound: Constraint, begins: Sequence[str]
) -> dict[str, Any] | None:
    """A constraint on what came since the latest drift that left `FEWEST` answers; JSON-able.

    Without such a drift: on the newest `NEWEST` of the answers, `FEWEST` at least. None where that is all there is.
    """
    times = traffic.times[rows]
    since = max((begin for begin in begins if (times >= begin).sum() >= FEWEST), default=None)
    newest = rows[-max(FEWEST, int(NEWEST * len(rows))) :] if since is None else rows[times >= since]
    if len(newest) == len(rows):
        return None
    named = {"since": traffic.times[newest[0]], "drifted": since is not None, "answers": len(newest)}
    return {**named, **_judged(traffic, newest, bound)}


Measure = Callable[[NDArray[np.int64]], float]


def _measured(traffic: Traffic, rows: NDArray[np.int64], metric: str) -> tuple[Evaluation, Measure]:
    """These answers, and a metric of some of them, against the other config's where it is one of a change."""
    found = traffic.evaluation(rows)
    if metric in RELATIVE_METRICS:
        other = traffic.evaluation(rows, np.array([traffic.shadow[int(row)] for row in rows]))
        each = changed(other, found)[metric]
        return found, lambda some: float(each[some].mean())
    of = metrics_of(found.labels)[metric].measure
    return found, lambda some: of(found.log_probs[some], found.predicted[some], found.gold[some])


def _interval(found: Evaluation, measure: Measure, value: float) -> tuple[float, float]:
    """For few answers and many looks, at `LEVEL`: Student's t over resampled users, around the value less its bias.

    Entropy of few answers is too small, and its percentiles smaller still; users who ask more count as fewer users.
    """
    owners = found.users[1]
    sizes, rng = np.bincount(owners), np.random.default_rng(0)
    rows = [np.flatnonzero(owners == user) for user in range(len(sizes))]
    draws = [np.concatenate([rows[user] for user in rng.integers(0, len(rows), len(rows))]) for _ in range(DRAWS)]
    values = np.array([measure(drawn) for drawn in draws])
    counted = sizes.sum() ** 2 / (sizes**2).sum()
    far = stats.t.isf(LEVEL / 2, max(1.0, counted - 1)) * values.std() * np.sqrt(len(sizes) / (len(sizes) - 1))
    middle = 2 * value - values.mean()
    return float(middle - far), float(middle + far)


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
    """Users of both arms since the split is as it is, and whether their ratio can be chance; None without a split."""
    if traffic.split == 0:
        return None
    rows = np.flatnonzero(traffic.named & traffic.since)
    seen = set(zip(traffic.users[rows], traffic.arms[rows], strict=True))
    first, second = (sum(arm == own for _, arm in seen) for own in ("a", "b"))
    p = sample_ratio(first, second, traffic.split)
    return {"a": first, "b": second, "share": traffic.split, "p": p, "fault": p < ALARM}


class Compared(NamedTuple):
    """What is observed of two configs, in the order in which labels came: users, values, bool [m] whether of arm b.

    `paired`: a value is a difference on one question, and all are of arm a; `split`: whether an answer was right.
    """

    kind: Literal["paired", "split"]
    users: tuple[str, ...]
    values: NDArray[np.float64]
    in_b: NDArray[np.bool_]


def compared(traffic: Traffic, own: NDArray[np.int64], labelled: NDArray[np.int64]) -> Compared | None:
    """The observations that a comparison is made of; None where there is no other config.

    What an earlier look has counted stays as it was: each answer counts with the label that came first, in their order.
    """
    traffic = replace(traffic, gold=traffic.first)
    rows, values = _against_shadow(traffic, _as_labels_came(traffic, labelled))
    if len(rows):
        return Compared("paired", tuple(traffic.users[rows]), values, np.zeros(len(rows), dtype=bool))
    if traffic.split == 0:
        return None
    mine, in_b = set(own.tolist()), traffic.arms == "b"
    known = np.flatnonzero((traffic.gold >= 0) & traffic.named & traffic.since)
    rows = _as_labels_came(traffic, np.array([row for row in known if in_b[row] or row in mine], dtype=np.int64))
    right = (traffic.predicted[rows] == traffic.gold[rows]).astype(np.float64)
    return Compared("split", tuple(traffic.users[rows]), right, in_b[rows])


def _as_labels_came(traffic: Traffic, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return rows[np.argsort(traffic.came[rows], kind="stable")]


def _shadowed(traffic: Traffic, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of these rows to which the other config has said something, too."""
    return np.array([row for row in rows if int(row) in traffic.shadow], dtype=np.int64)


def _against_shadow(traffic: Traffic, labelled: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows [m] that both configs answered, and on each: 1 only this one is right, -1 only the other, 0 equal."""
    rows = _shadowed(traffic, labelled)
    theirs = np.array([traffic.shadow[int(row)].argmax() for row in rows], dtype=np.int64)
    right = (traffic.predicted[rows] == traffic.gold[rows]).astype(np.float64)
    return rows, right - (theirs == traffic.gold[rows])


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
    finite = bool(np.isfinite([last.low, last.high]).all())
    return {
        "kind": found.kind,
        "mean": round(last.mean, 4),
        "interval": [round(last.low, 4), round(last.high, 4)] if finite else None,
        "users": last.users,
        "labels_by_user": last.labels,
        "margin": margin,
        "verdict": verdict(last, margin, most_users),
    }


def losers(traffic: Traffic, labelled: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Users who are answered worse than by the other config, the worst first; JSON-able.

    `own` is what a user lost, `loss` the same shrunken; who lost nothing is not listed, whatever all lose. A user's
    mean difference d over n labels is drawn to the mean of all, m + (d - m) T / (T + s / n), where s is the variance
    inside users and T that between them (normal-normal, by moments).
    """
    rows, values = _against_shadow(traffic, labelled)
    if not len(rows):
        return []
    users, of = traffic.evaluation(rows).users
    sizes = np.bincount(of)
    means = np.bincount(of, weights=values) / sizes
    inside = float(((values - means[of]) ** 2).sum() / max(1, len(rows) - len(users)))
    between = max(0.0, float(means.var() - (inside / sizes).mean()))
    middle = float(means.mean())
    weight = between / (between + inside / sizes) if between > 0 else np.zeros(len(users))
    shrunken = middle + weight * (means - middle)
    worst = [n for n in np.lexsort((means, shrunken)) if shrunken[n] < 0 and means[n] < 0][:LOSERS]
    return [
        {
            "user": users[n],
            "labels": int(sizes[n]),
            "own": round(float(-means[n]), 4),
            "loss": round(float(-shrunken[n]), 4),
        }
        for n in worst
    ]


def faults(found: Mapping[str, Any]) -> list[str]:
    """What a rollback is for: constraints broken over all or since a drift, and a deployment that is worse.

    Where nothing changes, a bound can be broken since a drift only if a drift is seen by chance: its levels add up to
    less than 0.02 for all looks. Where something else changed, the interval at `LEVEL` must lie beyond the bound. The
    newest answers without a drift have no such guard over many looks, and are no fault: `doubts`.
    """
    out = [f"{_bound(one)} is broken" for one in found["constraints"] if one["state"] == "broken"]
    for one in _lately_broken(found, drifted=True):
        out.append(f"{_bound(one)} is broken since {minute(one['lately']['since'])}")
    if found["comparison"] is not None and found["comparison"]["verdict"] == "worse":
        out.append("it is worse than the other config")
    return out


def doubts(found: Mapping[str, Any]) -> list[str]:
    """Bounds that the newest answers break where no drift is long enough ago: to be looked at, and no fault."""
    return [
        f"the newest {one['lately']['answers']} answers break {_bound(one)}"
        for one in _lately_broken(found, drifted=False)
    ]


def _lately_broken(found: Mapping[str, Any], *, drifted: bool) -> list[Mapping[str, Any]]:
    """Constraints that are not broken over all, and are of what came lately."""
    kept = [one for one in found["constraints"] if one["state"] != "broken" and one["lately"] is not None]
    return [one for one in kept if one["lately"]["state"] == "broken" and one["lately"]["drifted"] == drifted]


def _bound(one: Mapping[str, Any]) -> str:
    return f"{one['metric']} {one['bound']}"


def standing(one: Mapping[str, Any]) -> str:
    """A constraint's state, over all and, where that says something else for certain, of what came lately."""
    lately = one["lately"]
    if lately is None or lately["state"] not in ("holds", "broken") or lately["state"] == one["state"]:
        return str(one["state"])
    when = f"since {minute(lately['since'])}" if lately["drifted"] else f"in the newest {lately['answers']} answers"
    return f"{one['state']} over all; {lately['state']} {when}"


def minute(time: str) -> str:
    """A time of a log for readers."""
    return f"{time[:16].replace('T', ' ')} UTC"


def reasons(found: Mapping[str, Any]) -> tuple[list[str], str | None]:
    """What tuning again is for, faults and drift, and since when the latest drift is there; None without one."""
    drift = [f"drift of {one['what']}: {one['before']} -> {one['after']}" for one in found["drift"]]
    return [*faults(found), *drift], max((one["since"] for one in found["drift"]), default=None)
