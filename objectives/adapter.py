"""Adapters trained on the histories, as a trial: a head, LoRA or a prefix, for all users, groups or each.

A trial trains, unless these adapters were trained before, and reports the held-out items of each evaluation to the
pruner. Their scores are blended with the model's own. Calibration and label prior are those of the retrieval objective;
`fit: exact` solves them. The tune users are answered by heads that did not learn from them; LoRA and prefixes have
learned from four fifths of them, not from their questions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives import Report, Scorer
from objectives.calibration import _Part, solved
from objectives.retrieval import Retrieval
from personalization.data.records import Dataset
from personalization.data.splits import PARTS, Splits
from personalization.evaluation import Evaluation, gold_indices
from personalization.methods.adapters.trained import Trained
from personalization.methods.adapters.user_adapters import Plan, UserAdapters, blended
from personalization.methods.adapters.user_heads import HeadPlan, Heads, UserHeads
from personalization.methods.taste.calibration import Calibrated
from personalization.methods.taste.priors import log_softmax
from personalization.methods.training.flags import flags
from search_spaces.adapter import BASELINE, OF_ITEMS

KEPT = 64
"""Tables of trained adapters that stay in memory."""
TRAINED = ("lora", "prefix")


class Adapter(Retrieval):
    """Retrieval's calibration on the scores of trained adapters."""

    method = "adapter"

    def __init__(self, splits: Splits, scorer: Scorer, progress: Callable[[int, int], None] | None = None) -> None:
        any_scorer: Any = scorer
        folder = any_scorer.folder.parent / "adapters"
        self._heads, self._lora = UserHeads(any_scorer, folder), UserAdapters(any_scorer, folder, progress)
        self._tables: OrderedDict[tuple[Any, ...], NDArray[np.float32]] = OrderedDict()
        self._trained: dict[tuple[Plan, bool], Trained] = {}
        self._course: dict[Plan, list[dict[str, float]]] = {}
        super().__init__(splits, scorer, progress)

    def evaluate(self, params: Any, part: str = "tune", report: Report | None = None) -> Evaluation:
        """Measure on one part; with `report`, the held-out items after each evaluation of the training."""
        if params.adapter not in TRAINED:
            return super().evaluate(params, part, report)
        if report is not None:
            self._learn(params, "tune", report)
        return super().evaluate(params, part)

    def _apply(self, part: _Part, params: Any) -> Calibrated:
        return super()._apply(part, self.resolved(params))

    def resolved(self, params: Any) -> Any:
        """With `fit: exact`, the parameters with the optimum of NLL on tune for beta, gamma and tau."""
        if params.fit != "exact":
            return params
        part, weighted = self._part("tune"), params.prior_mode == "similar"
        counts: NDArray[np.number[Any]] = self._histories("tune").counts(params) if weighted else part.counts
        return solved(params, self._scores("tune", params), counts, part.gold, self._priors(params))

    def settle(self, params: Any) -> Any:
        """The resolved parameters with the temperature that minimises NLL on tune."""
        return super().settle(self.resolved(params))

    def _scores(self, part: str, params: Any) -> NDArray[np.float32]:
        base = super()._scores(part, params)
        if params.adapter == "none":
            return base
        return blended(base, self._adapted(part, params), params.blend)

    def _adapted(self, part: str, params: Any) -> NDArray[np.float32]:
        key = (part, _head_plan(params) if params.adapter == "head" else _plan(params))
        if key not in self._tables:
            dataset = self._splits.part(part)
            if params.adapter == "head" and part == "tune":
                self._tables[key] = self._heads.crossed(dataset, _head_plan(params))
            elif params.adapter == "head":
                self._tables[key] = self._heads.scores(dataset, self._head(params))
            else:
                self._tables[key] = self._lora.scores(dataset, self._learn(params, part))
            if len(self._tables) > KEPT:
                self._tables.popitem(last=False)
        return self._tables[key]

    def _head(self, params: Any) -> Heads:
        return self._heads.learn(self._splits.tune, _head_plan(params))

    def _learn(self, params: Any, part: str, report: Report | None = None) -> Trained:
        """The adapters for a part: of tune's histories; at level `user`, for other parts, of everybody's histories."""
        plan, dataset = _plan(params), self._splits.tune
        of_everybody = plan.level == "user" and part != "tune"
        if report is None and (plan, of_everybody) in self._trained:
            return self._trained[plan, of_everybody]
        if of_everybody:
            everybody = [q for name in PARTS for q in self._splits.part(name).questions]
            dataset = Dataset(dataset.task, dataset.labels, tuple(everybody))

        def tell(items: Dataset, scores: NDArray[np.float32], records: Sequence[dict[str, float]]) -> None:
            assert report is not None
            self._course[plan] = list(records)
            ids, users = tuple(q.id for q in items.questions), tuple(q.user_id for q in items.questions)
            given = (items.labels, ids, users, gold_indices(items), log_softmax(scores), ["user"] * len(items))
            report(Evaluation(*given), len(records))

        self._trained[plan, of_everybody] = self._lora.learn(dataset, plan, None if report is None else tell)
        return self._trained[plan, of_everybody]

    def observed(self, params: Any) -> dict[str, float]:
        """What retrieval says; of a training its length, what it was where it was kept, and its size."""
        if params.adapter not in TRAINED:
            return super().observed(params)
        record = self._learn(params, "tune").record
        records = record["records"]
        best = records[record["kept"]]
        kept = {name: value for name, value in best.items() if name.startswith(("held_out", "loss"))}
        return {**kept, "epochs_run": float(records[-1]["epoch"]), "trainable": float(record["trainable"])}

    def curves(self, params: Any) -> dict[str, list[float]]:
        """What each evaluation of the training gave."""
        records = self._records(params)
        return {f"training/{name}": [record[name] for record in records] for name in (records or [{}])[0]}

    def alarms(self, params: Any) -> list[str]:
        """The flags of the training."""
        return flags(self._records(params))

    def _records(self, params: Any) -> list[dict[str, float]]:
        """The evaluations of a training, as far as it went."""
        if params.adapter not in TRAINED:
            return []
        plan = _plan(params)
        known = self._trained.get((plan, False))
        return self._course.get(plan, []) if known is None else list(known.record["records"])

    def pictures(self, params: Any) -> Mapping[str, Mapping[str, Any]]:
        """The course of the training, and the tune users by group."""
        if params.adapter not in TRAINED:
            return {}
        trained = self._learn(params, "tune")
        found: dict[str, Mapping[str, Any]] = {"training": {"records": trained.record["records"]}}
        return found if trained.clusters is None else {**found, "groups": self._lora.placed(self._splits.tune, trained)}

    def groups(self, params: Any, part: str) -> dict[str, int]:
        """Those of cluster adapters and heads, at each user's last question."""
        if params.adapter == "none" or params.level != "cluster":
            return {}
        dataset = self._splits.part(part)
        if params.adapter == "head":
            found = self._heads.assigned(dataset, self._head(params))
        else:
            found = self._lora.assigned(dataset, self._learn(params, "tune"))
        return dict(zip((q.user_id for q in dataset.questions), found.tolist(), strict=True))

    def remarks(self, params: Any) -> list[str]:
        """What looks wrong in the training, and the groups."""
        if params.adapter == "none":
            return super().remarks(params)
        if params.adapter == "head":
            return []
        record, said = self._learn(params, "tune").record, self.alarms(params)
        if record["silhouette"] is not None:
            sizes = ", ".join(map(str, record["sizes"]))
            said.append(f"{record['groups']} groups of {sizes} users, silhouette {record['silhouette']:.3f}")
        return said

    def learned_from_tune(self, params: Any) -> bool:
        """LoRA and prefixes do; heads answer users that they did not learn from."""
        return params.adapter in TRAINED

    def warm_start(self) -> list[dict[str, Any]]:
        """Retrieval's points without an adapter, then the plainest head or adapters, solved exactly.

        Of LoRA: in the upper third, and in all layers, there with groups that start from the one of all users.
        """
        base = asdict(BASELINE)
        plain = [{**base, **point} for point in super().warm_start()]
        exact = {"fit": "exact", "blend": 1.0, "kappa": 5.0, "prior_mode": "user"}
        if self._scorer.kind == "encoder":
            similar = {"prior_mode": "similar", "ranking": "similarity", "width": 0.1, "half_life": 30.0}
            head = {**base, **exact, **similar, "adapter": "head"}
            levels = [{**head, "level": level, "blend": 1.0} for level in ("unified", "user")]
            return [*plain, {**head, "blend": 0.5}, *levels]
        lora = {**base, **exact, "adapter": "lora"}
        upper = [{**lora, "start": 0.67, "level": level} for level in ("unified", "cluster")]
        whole = {**lora, "start": 0.0, "rank": 8}
        return [*plain, *upper, whole, {**whole, "level": "cluster", "anchor": 0.01}]

    def deployment(self, params: Any) -> dict[str, Any]:
        """That of retrieval with resolved parameters, and the adapter by its content."""
        config = super().deployment(self.resolved(params))
        if params.adapter == "head":
            config["adapter"] = self._heads.save(self._head(params))
        elif params.adapter in TRAINED:
            config["adapter"] = self._learn(params, "confirm").listed()
            if (params.adapter, params.level) == ("lora", "user"):
                config["without_adapter"] = self._without(params)
        return config

    def _without(self, params: Any) -> dict[str, Any]:
        """What calibrates the model itself: users that no adapter was trained for are answered by it."""
        plain = self.resolved(replace(params, adapter="none", fit="exact"))
        bias = self._priors(plain).log_model["batch"]
        return {"params": {name: getattr(plain, name) for name in ("beta", "gamma", "tau")}, "log_model": bias.tolist()}


def _plan(params: Any) -> Plan:
    plan = Plan(**{field.name: getattr(params, field.name) for field in fields(Plan)})
    if plan.k:
        return plan
    plain = {name: getattr(Plan, name) for name in ("ranking", "mix", *OF_ITEMS)}
    return replace(plan, **plain)


def _head_plan(params: Any) -> HeadPlan:
    return HeadPlan(**{field.name: getattr(params, field.name) for field in fields(HeadPlan)})
