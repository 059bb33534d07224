"""LoRA or a prefix, for all users, groups or each, learned from their histories; see `methods.adapters`.

What is trained lies in the folder of adapters, by all that it depends on. `blend` weighs the adapted model's
log-probabilities beside the model's own. Tune users' adapters have learned from four fifths of their items.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from personalization.data.records import Dataset
from personalization.files import write_atomic
from personalization.methods.adapters.edit import AdapterEdit
from personalization.methods.adapters.trained import HELD, Trained
from personalization.methods.adapters.user_adapters import KEPT_CHECKPOINTS, TOGETHER, Plan, UserAdapters, placed
from personalization.methods.training.flags import flags
from personalization.scoring.store import size_limit
from personalization.stages import Stage
from personalization.stages.facts import Facts, Field
from personalization.stages.holdings import RECORD, Held, May, Sizes
from personalization.stages.work import KEPT_OF, Tools, Work

IN_TRAINING = 7
"""Copies of the adapters while they are trained: themselves, gradient, two moments, best, origin, and one to write."""
ACTIVATIONS = 34
"""Numbers kept for the gradient of a token in a layer, in widths (Korthikanti et al. 2022, without attention)."""


class Adapter(Stage):
    """The forward pass of each question with the adapter of its user."""

    trains = True
    learns = True

    def learn(self, params: Any, work: Work, tools: Tools) -> Trained | None:
        """Train on the tune users' histories, or read what was trained before."""
        return None if params.adapter == "none" else self._learn(params, work.dataset, work, tools)

    def _learn(self, params: Any, dataset: Dataset, work: Work, tools: Tools) -> Trained:
        assert tools.folder is not None
        adapters, plan = UserAdapters(tools.scorer, tools.folder, tools.progress), _plan(params, work)
        if tools.report is None:
            return adapters.learn(dataset, plan)
        course, report = _course(params, tools), tools.report

        def tell(items: Dataset, scores: NDArray[np.float32], records: Sequence[dict[str, float]]) -> None:
            course[:] = list(records)
            report(items, scores, len(records))

        return adapters.learn(dataset, plan, tell)

    def extend(self, params: Any, learned: Any, work: Work, everybody: Dataset, tools: Tools) -> Any:
        """Adapters of users: of everybody's histories."""
        if learned is None or params.level != "user":
            return learned
        return tools.once(
            "everybody's adapters", (_plan(params, work),), lambda: self._learn(params, everybody, work, tools)
        )

    def act(self, params: Any, learned: Any, work: Work, tools: Tools) -> Work:
        """An edit with the adapter of each question's user."""
        if learned is None:
            return work
        groups = learned.assigned(work.dataset, tools.embed)
        model = tools.scorer.backbone.model
        adapters = tools.once("adapters", learned.folder, lambda: learned.on(model))
        owners = [q.user_id for q in work.dataset.questions]
        edit = AdapterEdit(adapters, groups, owners, learned.first - 1, learned.prefix, learned.content)
        partial = learned.level == "user" and learned.below is None
        return replace(work, edits=(*work.edits, edit), blend=params.blend, partial=work.partial or partial)

    def learned_labels(self, params: Any) -> bool:
        """They have learned from the tune users' own items."""
        return bool(params.adapter != "none")

    def course(self, params: Any, tools: Tools) -> Facts:
        """The evaluations of a training, as far as it went."""
        return self._course_facts(_course(params, tools))

    def _course_facts(self, records: Sequence[dict[str, float]]) -> Facts:
        curves = {f"training/{name}": [record[name] for record in records] for name in (records or [{}])[0]}
        return Facts(curves=curves, alarms=tuple(flags(records)))

    def groups(self, params: Any, learned: Any, work: Work, tools: Tools) -> Mapping[str, int]:  # noqa: ARG002
        """At each user's last question."""
        if learned is None or learned.clusters is None:
            return {}
        assigned = learned.assigned(work.dataset, tools.embed).tolist()
        return dict(zip((q.user_id for q in work.dataset.questions), assigned, strict=True))

    def facts(self, params: Any, learned: Any, below: Work, done: Work, tools: Tools) -> Facts:  # noqa: ARG002
        """The training's length and size, what it was where it was kept, its course and flags."""
        if learned is None:
            return Facts()
        record = learned.record
        records = list(record["records"])
        best = records[record["kept"]]
        kept = {name: value for name, value in best.items() if name.startswith(("held_out", "loss"))}
        said = self._course_facts(records)
        remarks = list(said.alarms)
        pictures: dict[str, Callable[[], Mapping[str, Any]]] = {"training": lambda: {"records": records}}
        if record["silhouette"] is not None:
            sizes = ", ".join(map(str, record["sizes"]))
            remarks.append(f"{record['groups']} groups of {sizes} users, silhouette {record['silhouette']:.3f}")
            pictures["groups"] = lambda: placed(done.dataset, learned, tools.embed)
        if record.get("parts", 1) > 1:
            remarks.append(f"the adapters of {record['groups']} users were trained in {record['parts']} parts")
        for rate, counts in record.get("varied", {}).items():  # trainings of earlier versions did not count
            changed = sorted(counts.values())
            middle = changed[len(changed) // 2]
            remarks.append(
                f"{rate} changes {sum(changed)} of {record['items']} items in every second epoch: of a user "
                f"{changed[0]} to {changed[-1]}, the median {middle}"
            )
        metrics = {**kept, "epochs_run": float(records[-1]["epoch"]), "trainable": float(record["trainable"])}
        layers = tools.scorer.backbone.depth - learned.first
        built = {"trainable_parameters": int(record["trainable"]), "adapted_layers": layers, "adapters": learned.count}
        told: dict[str, Field] = {f"architecture.{name}": size for name, size in built.items()}
        told |= {"architecture.bytes_a_user": self.user_bytes(params, learned), "training.epochs": len(records)}
        return Facts(metrics, said.curves, said.alarms, remarks, pictures, fields=told)

    def starts(self, params: Any, work: Work, tools: Tools) -> list[dict[str, Any]]:  # noqa: ARG002
        """LoRA in the upper third, and in all layers, there with groups that start from the one of all users."""
        if tools.scorer.kind == "encoder":
            return []
        exact = {"calibration.fit": "exact", "calibration.kappa": 5.0, "calibration.prior_mode": "user"}
        lora = {**exact, "adapter.adapter": "lora", "adapter.blend": 1.0}
        upper = [{**lora, "adapter.start": 0.67, "adapter.level": level} for level in ("unified", "cluster")]
        whole = {**lora, "adapter.start": 0.0, "adapter.rank": 8}
        return [*upper, whole, {**whole, "adapter.level": "cluster", "adapter.anchor": 0.01}]

    def training_s(self, learned: Any) -> float:
        """Of the adapters, as their record says; a deployment has none."""
        return float(learned.record.get("seconds", 0.0)) if learned else 0.0

    def user_bytes(self, params: Any, learned: Any) -> int:
        """Adapters of users: the files of one."""
        if learned is None or params.level != "user":
            return 0
        return int(learned.bytes) // max(int(learned.count), 1)

    def holds(self, may: May, sizes: Sizes) -> Held:
        """Of every trial the adapters and scores, of the latest what a training goes on from; states of the items'
        tokens below the first adapted layer. In memory the training, its batch, the items, and the latest trials'
        adapters."""
        from personalization.scoring.fixed import BATCH_TOKENS

        groups = int(max(may["groups"])) if "cluster" in may["level"] else 1
        count = sizes.users if "user" in may["level"] else groups
        lora = max(may["rank"]) * sizes.linear * sizes.depth * (1 - min(may["start"]))
        prefix = max(may["prefix_tokens"]) * 2 * sizes.depth * sizes.width if "prefix" in may["adapter"] else 0
        one = 4 * max(lora, prefix)
        at_once = min(count * one, max(TOGETHER, groups * one))
        disk = sizes.trials * (2 * count * one + sizes.scores) + min(sizes.trials, KEPT_CHECKPOINTS) * 4 * at_once
        views = 2 * sizes.settings(may["word_dropout"])
        stored = min(sizes.settings(may["start"], may["word_dropout"]) * sizes.states(sizes.items), size_limit())
        beside = at_once * IN_TRAINING + min(count * one, HELD) * KEPT_OF["fitted adapter"]
        batch = BATCH_TOKENS["cpu"] * sizes.depth * ACTIVATIONS * sizes.width * sizes.itemsize
        return Held(disk + stored, beside + batch + views * sizes.items * (RECORD + 3 * sizes.prompt), beside)

    def export(self, params: Any, learned: Any, work: Work, tools: Tools, folder: Path) -> list[str]:
        """PEFT's folders, and which of them answers whom."""
        if learned is None:
            return []
        learned.save(folder / "adapters")
        owners = [q.user_id for q in work.dataset.questions]
        groups = dict(zip(owners, learned.assigned(work.dataset, tools.embed).tolist(), strict=True))
        write_atomic(folder / "adapters" / "assigned.json", json.dumps(groups, indent=0) + "\n")
        kind = "prefixes on the LoRA of below/" if learned.prefix else "LoRA"
        said = f"adapters/group-N: {kind} in PEFT's format; assigned.json: user -> N of the last question, -1 for none"
        blend = [] if params.blend == 1 else [f"mind: the chain weighs what the adapted model says by {params.blend:g}"]
        return [said, *blend]

    def save(self, params: Any, learned: Any, folder: Path) -> Mapping[str, Any]:  # noqa: ARG002
        """PEFT's folders."""
        return {} if learned is None else {"adapters": learned.save(folder / "adapters")}

    def load(self, params: Any, listed: Mapping[str, Any], folder: Path) -> Any:  # noqa: ARG002
        """What was saved."""
        return Trained.load(listed["adapters"], folder / "adapters") if listed else None


def _course(params: Any, tools: Tools) -> list[dict[str, float]]:
    """Where the course of a training is noted while it runs."""
    noted: list[dict[str, float]] = tools.once("courses", params, list)
    return noted


def _plan(params: Any, work: Work) -> Plan:
    names = [field.name for field in fields(Plan) if hasattr(params, field.name)]
    return Plan(**{name: getattr(params, name) for name in names}, asking=work.asking)
