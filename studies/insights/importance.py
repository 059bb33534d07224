"""How much hangs on a parameter: the share of what makes a trial good that its values alone explain.

With p_v the share of all trials and q_v the share of good trials that have value v, and r the share of good ones,

    D = sum_v (q_v - p_v)^2 / p_v,    importance = (D r / (1 - r) - (V - 1) / (N - 1)) held within 0 and 1

D is what PED-ANOVA takes as importance (Watanabe, Bansal, Hutter 2023, "PED-ANOVA: Efficiently Quantifying
Hyperparameter Importance in Arbitrary Subspaces"), here over the values that are shown instead of a kernel density, so
that resampling costs a matrix product. D r / (1 - r) is the variance of goodness between values in units of its whole
variance; what V values of an unrelated parameter explain by chance is taken off. The interval is that of 200 resamples
of the trials, from which chance is taken off twice: once for the trials, once for their resampling. Where nothing can
be estimated the importance is 0 and its interval NaN, and `unjudged` says why.

Among feasible trials *good* is the top 30 %. The same function says what decides whether a trial is feasible, or keeps
one constraint, among all complete trials. `of_optuna` has Optuna's own evaluators, which use no interval.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import optuna
import pandas as pd
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from personalization.errors import UsageError
from studies.insights.history import History, choice_of, is_number, there
from studies.insights.values import TOP, Levels, good, levels, short

RESAMPLES = 200
QUANTILES = (0.025, 0.975)
ENOUGH = 10
"""Trials below which nothing is said."""
FEW = 3
"""Trials with other values than the most frequent below which a parameter hardly varied."""
COLUMNS = ("parameter", "group", "importance", "low", "high", "share", "trials", "warning", "unjudged", "only")
FIXED, UNREAD, SCARCE = "fixed", "never read", "too few trials"
"""Why nothing was estimated (`unjudged`): all trials have one value, `only`; no trial reads it; under `ENOUGH` do."""


@lru_cache(maxsize=4)
def resamples(count: int, draws: int = RESAMPLES) -> NDArray[np.float32]:
    """How often each trial is in each resample, [draws + 1, n]; the first one is the trials themselves."""
    drawn = np.random.default_rng(0).poisson(1.0, (draws, count)).astype(np.float32)
    return np.vstack([np.ones((1, count), dtype=np.float32), drawn])


def explained(
    member: NDArray[np.bool_], chosen: NDArray[np.bool_], weights: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of the variance of `chosen` [n] between the values of `member` [n, V], in each resample [B]; and the share
    that chance explains in each."""
    counts = (weights @ member.astype(np.float32)).astype(np.float64)
    goods = (weights @ (member & chosen[:, None]).astype(np.float32)).astype(np.float64)
    total, hits = counts.sum(axis=1), goods.sum(axis=1)
    rate = np.divide(hits, total, out=np.zeros_like(hits), where=total > 0)
    own = np.divide(goods, counts, out=np.zeros_like(goods), where=counts > 0)
    between = (counts * (own - rate[:, None]) ** 2).sum(axis=1)
    whole = total * rate * (1 - rate)
    share = np.divide(between, whole, out=np.zeros_like(between), where=whole > 0)
    chance = ((counts > 0).sum(axis=1) - 1) / np.maximum(total - 1, 1)
    return share, np.where(whole > 0, chance, 0.0)


def with_interval(share: NDArray[np.float64], chance: NDArray[np.float64]) -> tuple[float, float, float]:
    """The estimate from the trials themselves, and the interval from their resamples."""
    point = float(np.clip(share[0] - chance[0], 0, 1))
    low, high = np.clip(np.quantile(share[1:] - chance[1:] - chance[0], QUANTILES), 0, 1)
    return point, float(min(low, point)), float(max(high, point))


def _ranked(history: History, kept: pd.DataFrame, chosen: NDArray[np.bool_]) -> pd.DataFrame:
    weights = resamples(len(kept))
    rows: list[dict[str, Any]] = []
    for parameter in history.parameters.values():
        if parameter.items:
            continue
        found = levels(parameter, kept[f"params_{parameter.name}"])
        read = found.member.any(axis=1)
        number = int(read.sum())
        only = found.labels[0] if len(found.labels) == 1 and kept[f"params_{parameter.name}"].nunique() == 1 else None
        unjudged = UNREAD if not number else FIXED if only is not None else SCARCE if number < ENOUGH else ""
        point, low, high = 0.0, math.nan, math.nan
        if not unjudged and len(found.labels) > 1:
            point, low, high = with_interval(*explained(found.member[read], chosen[read], weights[:, read]))
        rows.append(
            {
                "parameter": parameter.name,
                "group": parameter.group,
                "importance": point,
                "low": low,
                "high": high,
                "trials": number,
                "warning": _warning(found, number, len(kept)),
                "unjudged": unjudged,
                "only": only,
            }
        )
    frame = pd.DataFrame(rows, columns=[name for name in COLUMNS if name != "share"])
    total = frame["importance"].sum()
    frame.insert(5, "share", frame["importance"] / total if total > 0 else 0.0)
    return frame.sort_values(["importance", "high"], ascending=False, kind="stable", ignore_index=True)


def _warning(found: Levels, read: int, trials: int) -> str:
    """Why a parameter cannot matter here, or cannot be judged."""
    if read == 0:
        return "never read: another parameter turns it off in every trial"
    if read < ENOUGH:
        return f"too few trials to tell: {read} of {trials} read it"
    if len(found.labels) == 1:
        return f"cannot matter: {short(found.labels[0])} in every trial"
    most = int(found.member.sum(axis=0).max())
    if read - most < FEW:
        label = found.labels[int(found.member.sum(axis=0).argmax())]
        return f"hardly varied: {short(label)} in {most} of {read} trials"
    if read < trials / 2:
        return f"read in {read} of {trials} trials only"
    return ""


def importance(history: History, top: float = TOP) -> pd.DataFrame:
    """A row a parameter, what most hangs on first; among feasible trials; `COLUMNS`."""
    kept = history.feasible
    chosen, _ = good(kept["gain"].to_numpy(dtype=float), top)
    return _ranked(history, kept, chosen)


def feasibility_importance(history: History) -> pd.DataFrame:
    """What decides whether a trial is feasible at all (`constraint` is "all"), and keeps each constraint."""
    complete = history.trials[history.trials["state"] == TrialState.COMPLETE.name]
    wanted = {"all": complete["feasible"].to_numpy(dtype=bool)}
    wanted |= {name: ~(complete[f"constraints_{name}"].to_numpy(dtype=float) > 0) for name in history.constraints}
    parts = []
    for name, kept in wanted.items():
        found = _ranked(history, complete, kept)
        found.insert(0, "constraint", name)
        found.insert(1, "kept", float(kept.mean()) if len(kept) else 1.0)
        parts.append(found)
    return pd.concat(parts, ignore_index=True)


EVALUATORS: dict[str, Callable[[], Any]] = {
    "ped_anova": lambda: optuna.importance.PedAnovaImportanceEvaluator(),
    "fanova": lambda: optuna.importance.FanovaImportanceEvaluator(seed=0),
    "mdi": lambda: optuna.importance.MeanDecreaseImpurityImportanceEvaluator(seed=0),
}
"""Optuna's evaluators by name, loaded when one is asked for. fANOVA: Hutter, Hoos, Leyton-Brown 2014."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's word that there is a new study."""
    told = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(told)


def _trials_of(kept: pd.DataFrame, distributions: Mapping[str, BaseDistribution]) -> list[FrozenTrial]:
    """Rows as trials of these parameters; ValueError where one has a value that its distribution lacks."""
    columns = {}
    for name, known in distributions.items():
        column = kept[f"params_{name}"].to_list()
        if isinstance(known, CategoricalDistribution):
            column = [choice_of(known, held) for held in column]
        columns[name] = column
    given = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)] or [{}] * len(kept)
    return [
        optuna.create_trial(params=params, distributions={**distributions}, value=value)
        for params, value in zip(given, kept["value"], strict=True)
    ]


def _widened(known: BaseDistribution, column: pd.Series) -> BaseDistribution:
    """The distribution with all that the trials had: ranges may have changed, or differ between studies."""
    seen = column.unique().tolist()
    if isinstance(known, CategoricalDistribution):
        more = [held for held in seen if held not in map(there, known.choices)]
        return CategoricalDistribution([*known.choices, *more])
    if not isinstance(known, FloatDistribution | IntDistribution) or not all(map(is_number, seen)):
        return CategoricalDistribution(seen)
    low, high = min(known.low, *seen), max(known.high, *seen)
    if isinstance(known, IntDistribution) and all(float(held).is_integer() for held in seen):
        return IntDistribution(int(low), int(high), log=known.log and low > 0)
    return FloatDistribution(low, high, log=known.log and low > 0)


def of_optuna(history: History, evaluator: str) -> dict[str, float]:
    """Optuna's importance among feasible trials, of the parameters that all of them have; UsageError for another name.

    They get a study of the feasible trials alone, in its own direction: given all trials, they would count infeasible
    ones, too.
    """
    if evaluator not in EVALUATORS:
        raise UsageError(f"no importance {evaluator!r}; there are {', '.join(EVALUATORS)}")
    kept = history.feasible
    refused = f"{evaluator} cannot judge {len(kept)} feasible trials of {history.name}"
    if not len(kept):
        raise UsageError(refused)
    known = {name: p.distribution for name, p in history.parameters.items() if p.distribution is not None}
    distributions = {name: found for name, found in known.items() if kept[f"params_{name}"].notna().all()}
    try:
        trials = _trials_of(kept, distributions)
    except ValueError:
        widened = {name: _widened(found, kept[f"params_{name}"]) for name, found in distributions.items()}
        trials = _trials_of(kept, widened)
    with _quiet():
        study = optuna.create_study(direction="maximize" if history.maximize else "minimize")
    study.add_trials(trials)
    with warnings.catch_warnings(category=optuna.exceptions.ExperimentalWarning, action="ignore"):
        try:
            found = optuna.importance.get_param_importances(
                study, evaluator=EVALUATORS[evaluator](), params=list(distributions)
            )
        except (ValueError, RuntimeError, AssertionError) as error:
            raise UsageError(f"{refused}: {error}" if str(error) else refused) from None
    return dict(found)
