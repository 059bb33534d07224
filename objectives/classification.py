"""Classification by a chain of stages: fitted on tune users, measured on any part.

Trials fit and answer the tune users; the other parts are answered by the same fitted chain, as it would be served. Once
a trial is chosen, the select users have nothing left to decide: what is tested and served may learn from them, too.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives import Report
from personalization.backbones.cached import CachedScorer
from personalization.data.records import Dataset
from personalization.data.splits import PARTS, Splits
from personalization.evaluation import Evaluation, gold_indices
from personalization.methods.taste.calibration import Calibrated
from personalization.methods.taste.priors import log_softmax
from personalization.methods.taste.solvers import fit_temperature
from personalization.scoring.store import Progress
from personalization.stages import chain, stage
from personalization.stages.calibration import resolved
from personalization.stages.chain import Fitted
from personalization.stages.facts import Facts, Field, joined
from personalization.stages.holdings import May
from personalization.stages.work import Tools, Work, begin, plain_scores
from search_spaces import ChainParams, ChainSpace


class Classification:
    """One chain on one split of a data set. The tune users are scored at once, without any stage.

    `may`: stage -> what its parameters may be, where that is known, so that what they need may be run together.
    """

    def __init__(
        self,
        space: ChainSpace,
        splits: Splits,
        scorer: CachedScorer,
        progress: Progress | None = None,
        may: Mapping[str, May] | None = None,
    ) -> None:
        folder = None if scorer.folder is None else scorer.folder.parent / "adapters"
        self.space, self.splits = space, splits
        self._tools = Tools(scorer, progress, folder, may=may or {})
        self._work: dict[str, Work] = {}
        self._refitted: Classification | None = None

    def refitting(self, refit: bool) -> Classification:
        """The same chain on the users of tune and select together as its tune users; itself where `refit` is not asked
        for, or nobody selects."""
        tune, select = self.splits.tune, self.splits.select
        if not refit or not select.questions:
            return self
        if self._refitted is None:
            both = replace(tune, questions=(*tune.questions, *select.questions))
            splits = replace(self.splits, tune=both, select=replace(tune, questions=()))
            tools = self._tools
            found = self._refitted = Classification(self.space, splits, tools.scorer, tools.progress, tools.may)
            found._work["tune"] = replace(begin(both, found._tools, "tune"), seams=(len(tune),))
        return self._refitted

    def work(self, part: str) -> Work:
        """A part's questions, to which nothing was done yet."""
        if part not in self._work:
            self._work[part] = begin(self.splits.part(part), self._tools, part)
        return self._work[part]

    def label_mass(self) -> float | None:
        """Mean probability that a causal model gives to the labels together, on tune; of an encoder None."""
        if self._tools.scorer.kind == "encoder":
            return None
        table = plain_scores(self.work("tune"), self._tools)
        return float(np.exp(np.logaddexp.reduce(table, axis=1)).mean())

    def evaluate(self, params: ChainParams, part: str = "tune", report: Report | None = None) -> Evaluation:
        """Measure on one part; with `report`, first on growing blocks of tune users, or on what a training gives."""
        if part == "tune":
            answers = (self._fit(params) if report is None else self._fit_reporting(params, report)).answers
        else:
            answers = self._tools.once("answers", (part, params), lambda: self._answers(params, self.work(part)))
        return evaluation(self.splits.part(part), answers)

    def _answers(self, params: ChainParams, work: Work) -> Calibrated:
        found = chain.answer(self.fitted(params), work, self._tools).answer
        assert found is not None
        return found

    def evaluate_with(self, params: ChainParams, part: str, asked: Dataset, name: Hashable | None = None) -> Evaluation:
        """Measure on a part's questions as `asked` has them, in their order: with other histories.

        Users and gold labels are those of the part. What is run is kept in memory by a name.
        """
        work = begin(asked, self._tools, None if name is None else (part, name))
        return evaluation(self.splits.part(part), self._answers(params, work))

    def _fit(self, params: ChainParams) -> Fitted:
        return chain.fit(params, self.work("tune"), self._tools)

    def _fit_reporting(self, params: ChainParams, report: Report) -> Fitted:
        """Fit, telling of held-out items where a stage trains, else of blocks of users."""
        told = False

        def of_items(items: Dataset, scores: NDArray[np.float32], step: int) -> None:
            nonlocal told
            told = True
            report(evaluation(items, Calibrated(log_softmax(scores), ["user"] * len(items))), step)

        def of_users(work: Work) -> None:
            if not told:
                assert work.answer is not None
                report(evaluation(work.dataset, work.answer))

        tools = replace(self._tools, report=of_items)
        return chain.fit_in_blocks(params, self.work("tune"), tools, of_users)

    def fitted(self, params: ChainParams) -> Fitted:
        """The chain as it is served: with what belongs to each user alone, of every user whose history is known."""
        questions = tuple(q for part in PARTS for q in self.splits.part(part).questions)
        return chain.extended(self._fit(params), replace(self.splits.tune, questions=questions), self._tools)

    def facts(self, params: ChainParams) -> Facts:
        """What the stages did on the tune users, beyond their predictions."""
        found = chain.facts(self._fit(params), self._tools)
        return joined([self._beside_no_items(params), found, Facts(fields=self._fields(params))])

    def _fields(self, params: ChainParams) -> dict[str, Field]:
        """What data a trial was measured on, and what stood in its prompts: characters, means over questions."""
        tune, work = self.splits.tune, self._fit(params).tune[-1]
        dates = sorted(q.date for q in tune.questions if q.date is not None)
        told: dict[str, Field] = {
            "data.rows": len(tune),
            "data.users": len({q.user_id for q in tune.questions}),
            "data.labels": len(tune.labels),
            "data.items_a_user": round(float(np.mean([len(q.history) for q in tune.questions])), 1),
        }
        if dates:
            told["data.dates"] = f"{dates[0]:%Y-%m-%d} to {dates[-1]:%Y-%m-%d}"
        before, after = (round(float(np.mean([len(p) for p in w.prompts]))) for w in (self.work("tune"), work))
        parts = [f"question {before}"]
        if work.asking.k:
            parts.append(f"{work.asking.k} items {after - before}")
        return {**told, "features.prompt_characters": after, "features.prompt": tuple(parts)}

    def _beside_no_items(self, params: ChainParams) -> Facts:
        """With items in the prompt and nothing trained on them: the same parameters without them."""
        if params.get_value("prompt.k") in (None, 0) or self._fit(params).tune[-1].edits:
            return Facts()
        without = params.with_stage("prompt", replace(params["prompt"], k=0))
        before, after = (self.evaluate(p).metrics["accuracy"] for p in (without, params))
        items = f"{params['prompt'].k} history items in the prompt"
        said = f"with {items} accuracy is {after:.3f}, and {before:.3f} without, all else equal"
        return Facts(metrics={"accuracy_without_items": before}, remarks=(said,))

    def course(self, params: ChainParams) -> Facts:
        """What can be said of a trial that was ended before it had an answer."""
        return joined([stage(name).course(own, self._tools) for name, own in params.items()])

    def groups(self, params: ChainParams, part: str) -> Mapping[str, int]:
        """The group of each user of a part, of stages that have groups."""
        fitted = self._fit(params) if part == "tune" else self.fitted(params)
        below, found = self.work(part), dict[str, int]()
        for name, own in params.items():
            learned = fitted.learned[name]
            found |= stage(name).groups(own, learned, below, self._tools)
            below = chain.acted(fitted, name, below, self._tools)
        return found

    def learned_labels(self, params: ChainParams) -> bool:
        """Whether answers on tune users come from what has learned these users' own labels."""
        return any(stage(name).learned_labels(own) for name, own in params.items())

    def resolved(self, params: ChainParams) -> ChainParams:
        """The parameters, with the numbers that a solver finds; to be shown."""
        if params.get_value("calibration.fit") != "exact":
            return params
        solved = resolved(params["calibration"], self._fit(params).learned["calibration"])
        return params.with_stage("calibration", solved)

    def settled(self, params: ChainParams) -> ChainParams:
        """The same decisions with better probabilities: the temperature that minimises NLL on tune."""
        if params.get_value("calibration.fit") != "searched":
            return params
        factor = fit_temperature(self._fit(params).answers.log_probs, gold_indices(self.splits.tune))
        return params.changed(tau=params["calibration"].tau * factor)

    def solved(self, params: ChainParams) -> ChainParams:
        """The parameters with a calibration that is most accurate on tune, as far as lines through it tell; those of a
        chain in which anything else acts are left alone, since that would have to be run."""
        acts = any(own != self.space.BASELINE[name] for name, own in params.items() if name != "calibration")
        if acts or "calibration" not in self.space.chain:
            return params
        found = stage("calibration").solved(params["calibration"], self.work("tune"), self._tools)
        return params.with_stage("calibration", found)

    def warm_start(self) -> list[dict[str, Any]]:
        """Raw values worth trying first: the calibration's exact optima alone, then each other stage's plainest
        settings on top of one."""
        full, work = self.space.BASELINE.full(), self.work("tune")
        optima = self._starts("calibration", work)
        own_taste = [point for point in optima if point["calibration.prior_mode"] == "user"]
        points = [{**full, **point} for point in optima]
        for name in self.space.chain:
            for start in self._starts(name, work) if name != "calibration" and own_taste else []:
                points.append({**full, **own_taste[-1], **start})
        return [self.space.raw(point) for point in points]

    def _starts(self, name: str, work: Work) -> list[Mapping[str, Any]]:
        if name not in self.space.chain:
            return []
        return list(stage(name).starts(self.space.BASELINE[name], work, self._tools))


def evaluation(dataset: Dataset, answers: Calibrated) -> Evaluation:
    """Answers to a data set's questions, beside their gold labels."""
    ids, users = tuple(q.id for q in dataset.questions), tuple(q.user_id for q in dataset.questions)
    return Evaluation(dataset.labels, ids, users, gold_indices(dataset), answers.log_probs, answers.prior_modes)
