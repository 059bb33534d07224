"""A chain of stages: fitted on the tune users, asked, saved and loaded. There is no other way to an answer.

    fitted = fit(params, begin(tune, tools, "tune"), tools)        stage after stage, each on what is below it
    answer(fitted, begin(questions, tools), tools)                 trials, select, confirm, compare, predict, serving

Answers together are those one by one, in any order, and in a fresh process from the saved folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from personalization.data.records import Dataset
from personalization.errors import DataError, first_line
from personalization.methods.taste.calibration import Calibrated
from personalization.methods.taste.priors import log_softmax
from personalization.stages import stage
from personalization.stages.facts import Facts, joined
from personalization.stages.holdings import Held, May, Sizes
from personalization.stages.work import Tools, Work, scores_of

Params = Mapping[str, Any]
"""Stage -> its parameters, in the order of the chain."""


@dataclass(frozen=True)
class Fitted:
    """Stages with their parameters and what each learned. `tune`: the work on tune users after each stage, if at hand.

    The first of `tune` is the work before any stage.
    """

    params: Params
    learned: Mapping[str, Any]
    tune: tuple[Work, ...] = ()

    @property
    def chain(self) -> tuple[str, ...]:
        """The names of the stages."""
        return tuple(self.params)

    @property
    def answers(self) -> Calibrated:
        """Of the tune users, by what did not learn from them where that is to be had."""
        found = self.tune[-1].answer
        assert found is not None
        return found


def fit(params: Params, work: Work, tools: Tools) -> Fitted:
    """Fit a chain on the tune users' work; what was fitted for these parameters before is taken up again."""
    learned: dict[str, Any] = {}
    works = [work]
    for name, own in params.items():
        learned[name], work = _step(name, own, work, tools)
        works.append(work)
    return Fitted(params, learned, (*works[:-1], _answered(work, tools)))


def _step(name: str, params: Any, work: Work, tools: Tools) -> tuple[Any, Work]:
    """(what a stage learned, the work after it)."""

    def make() -> tuple[Any, Work]:
        learned = stage(name).learn(params, work, tools)
        done = stage(name).held_out(params, learned, work, tools)
        return learned, _noted(f"{name}, held out", params, work, done)

    key = None if work.key is None else (work.key, name, params)
    if tools.report is not None:
        if stage(name).trains:
            stage(name).learn(params, work, tools)
        tools = replace(tools, report=None)
    made: tuple[Any, Work] = tools.once(f"fitted {name}", key, make)
    return made


def _noted(name: str, params: Any, below: Work, work: Work) -> Work:
    """The work with a stage among what was done, if anything was."""
    return below if work is below else replace(work, done=(*below.done, (name, params)))


def answer(fitted: Fitted, work: Work, tools: Tools) -> Work:
    """The work with its answer, each question by itself."""
    for name in fitted.params:
        work = acted(fitted, name, work, tools)
    return _answered(work, tools)


def acted(fitted: Fitted, name: str, work: Work, tools: Tools) -> Work:
    """The work with one stage's step done, and noted."""
    params = fitted.params[name]
    return _noted(name, params, work, stage(name).act(params, fitted.learned[name], work, tools))


def _answered(work: Work, tools: Tools) -> Work:
    """A chain without a calibration answers with the scores as they are."""
    if work.answer is not None:
        return work
    log_probs = log_softmax(scores_of(work, tools)) if len(work) else np.empty((0, len(work.spoken)))
    return replace(work, answer=Calibrated(log_probs, ["none"] * len(work)))


def extended(fitted: Fitted, everybody: Dataset, tools: Tools) -> Fitted:
    """With what belongs to each user alone, of all these users: their histories are read, and no answer."""
    works = zip(fitted.params, fitted.tune, strict=False)
    learned = {
        name: stage(name).extend(fitted.params[name], fitted.learned[name], below, everybody, tools)
        for name, below in works
    }
    return Fitted(fitted.params, learned)


def user_bytes(fitted: Fitted) -> int:
    """What a deployment of the chain holds for each user alone, on the mean."""
    return sum(stage(name).user_bytes(params, fitted.learned[name]) for name, params in fitted.params.items())


def training_s(fitted: Fitted) -> float:
    """Seconds that the chain's trainings took, wherever that was."""
    return sum(stage(name).training_s(fitted.learned[name]) for name in fitted.params)


def facts(fitted: Fitted, tools: Tools) -> Facts:
    """What the stages did on the tune users."""
    steps = zip(fitted.params.items(), fitted.tune, fitted.tune[1:], strict=False)
    return joined(
        [stage(name).facts(params, fitted.learned[name], below, done, tools) for (name, params), below, done in steps]
    )


def holds(chain: Sequence[str], may: Mapping[str, May], sizes: Sizes) -> Held:
    """What a study of a chain holds at most; a stage stands on as many chains below it as are trained."""
    found = Held()
    for name in chain:
        found = found.plus(stage(name).holds(may[name], sizes))
        if stage(name).trains:
            sizes = sizes._replace(below=sizes.trials)
    return found


def export(fitted: Fitted, work: Work, tools: Tools, folder: Path) -> list[str]:
    """Write what other tools read of the stages, for the users of these questions; a line for each thing written."""
    lines: list[str] = []
    for name, params in fitted.params.items():
        lines += stage(name).export(params, fitted.learned[name], work, tools, folder)
        work = acted(fitted, name, work, tools)
    return lines


def save(fitted: Fitted, folder: Path) -> list[dict[str, Any]]:
    """Write what every stage learned into a folder; a list of the stages, JSON-able, that names it."""
    listed = []
    for name, params in fitted.params.items():
        found = stage(name).save(params, fitted.learned[name], folder)
        plain = asdict(params) if not isinstance(params, SimpleNamespace) else vars(params)
        listed.append({"stage": name, "params": dict(plain), "learned": dict(found)})
    return listed


def saved_params(name: str, told: Mapping[str, Any]) -> SimpleNamespace:
    """A stage's parameters as they were saved, by whatever version."""
    return SimpleNamespace(**{**stage(name).earlier, **told})


def load(listed: list[Mapping[str, Any]], folder: Path) -> Fitted:
    """What `save` wrote; DataError where a stage or a file is not there."""
    params: dict[str, Any] = {}
    learned: dict[str, Any] = {}
    for entry in listed:
        name = entry["stage"]
        try:
            params[name] = saved_params(name, entry["params"])
            learned[name] = stage(name).load(params[name], entry["learned"], folder)
        except (KeyError, OSError, TypeError, ValueError) as error:
            said = f"{type(error).__name__}: {first_line(error)}"
            raise DataError(f"{folder}: stage {name} cannot be read: {said}; copy the whole folder") from error
    return Fitted(params, learned)


def fit_in_blocks(params: Params, work: Work, tools: Tools, report: Callable[[Work], None]) -> Fitted:
    """`fit`, and told of the answers after each block of users but the last, before the next one is run.

    What the last stage learns for these answers, it learns of the blocks so far. A stage that trains tells of its
    training instead, and one that holds whole chains is fitted at once.
    """
    below, quiet = work, replace(tools, report=None)
    *lower, (name, own) = params.items()
    for stage_name, given in lower:
        _, below = _step(stage_name, given, below, tools)
    if stage(name).trains or stage(name).alone:
        return fit(params, work, tools)
    for count in range(1, len(below.blocks)):
        report(_answered(_step(name, own, below.first(count), quiet)[1], quiet))
    return fit(params, work, quiet)
