"""A deployment, tuned again on new data: a study that begins with the deployed parameters.

The data are LaMP files, or the log of a server with texts, of which every answer that got its label becomes a question.
The study has the spec of the one that was promoted; its first trial is what stands. Stages that the promoted study had
fixed, since it started from another one, stay as they are deployed. `by_user` adds overrides: strengths of the taste
that are each user's own, shrunk (`methods.taste.own`), for users who lose by what all have. What it finds is tested
like any promotion: on confirm users, or by `split: time` on later questions, that no trial of it saw, against the
baseline and against what stands; and it takes its place as a new generation, or does not. The study remembers what it
was begun for.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from personalization.data.dates import read_date
from personalization.data.lamp import check_dataset, write_dataset
from personalization.data.records import Dataset, HistoryItem, Question
from personalization.data.splits import PARTS
from personalization.data.values import wrong_text
from personalization.deployment import read_config, task_of
from personalization.errors import DataError, UsageError
from personalization.tasks.task import Fields
from search_spaces.calibration import OWN
from serving.log import placed, records, segments
from serving.replay import questions
from serving.traffic import check_labels
from studies.recovery import POINT
from studies.runner import Watcher, run_study
from studies.samplers import holds
from studies.spec import StudySpec, parse_spec
from studies.study import RECORD, OpenStudy, find_study, open_study
from studies.verdict.promotion import promote
from tracking.deployed import config_digest

log = logging.getLogger(__name__)

TRIALS = 100
PER_USER = ("calibration.per_user", "per_user")
"""The parameter for overrides, by its full and its short name."""
AGAIN = "again"
"""Study attribute: which deployment it tunes again, and why."""

Split = Literal["users", "time"]


def labelled(folder: Path, config: Mapping[str, Any], since: str | None = None) -> Dataset:
    """The answers of a log that got a label, as questions with gold and date; DataError where there is none.

    `since`: only those that were asked at this time or later.
    """
    task, labels = task_of(config), tuple(config["labels"])
    begin = None if since is None else read_date(since)
    if since is not None and begin is None:
        raise DataError(f"{since}: not a date; write it as 2026-11-28T10:00:00")
    gold = {record["of"]: record["label"] for record in records(folder, "feedback")}
    asked: dict[str, datetime | None] = {}
    for path, number, record in placed(folder, "questions"):
        check_labels(path, number, record, labels)
        asked[record["request"]] = read_date(record["at"])
    wanted = [
        replace(question, gold=gold[question.id], date=question.date or asked[question.id])
        for question in questions(folder, task.fields)
        if question.id in gold and (begin is None or (asked[question.id] or begin) >= begin)
    ]
    found = _usable(folder, wanted, task.fields)
    if not found:
        raise DataError(f"{folder}: no answer has got a label{'' if since is None else f' since {since}'}")
    return Dataset(task.with_labels(labels), labels, tuple(found))


def _usable(folder: Path, asked: Sequence[Question], fields: Fields) -> list[Question]:
    """The questions and history items that data may hold; how many are left out is said.

    Servers of earlier versions took blank texts and names, and all take history items without a label.
    """

    also = fields.also if fields.label is None else ()

    def kept(item: HistoryItem) -> bool:
        texts = [item.text, *([] if fields.label is None else [item.label]), *map(dict(item.more).get, also)]
        return all(text is not None and wrong_text(text) is None for text in texts)

    found = [one for one in asked if wrong_text(one.text) is None and wrong_text(one.user_id) is None]
    whole = sum(len(one.history) for one in found)
    found = [replace(one, history=tuple(filter(kept, one.history))) for one in found]
    questions_out, items_out = len(asked) - len(found), whole - sum(len(one.history) for one in found)
    if questions_out or items_out:
        log.warning(
            "%s: %d of %d questions and %d of %d history items are left out: empty, unreadable, or without a label",
            *(folder, questions_out, len(asked), items_out, whole),
        )
    return found


def spec_of_retune(
    deploy: Path, data: Path, home: Path, trials: int = TRIALS, split: Split = "users", since: str | None = None
) -> StudySpec:
    """The spec of the deployed study with other data, which are written into the home folder where they are a log."""
    config = read_config(deploy)
    was = dict(config["provenance"]["spec"])
    base = re.sub(r"-again-[0-9a-f]{8}(-by-user)?$", "", str(was["name"]))
    if segments(data, "questions"):
        dataset = labelled(data, config, since)
        folder = home / "serving" / "again" / dataset.fingerprint()[:16]
        write_dataset(folder, "log", dataset)  # again what is there already: a run that was killed may have left a half
    elif since is not None:
        raise UsageError(f"--since is of a log, and {data} is none")
    elif data.exists():
        folder, dataset = data, check_dataset(data, task=task_of(config)).usable()
    else:
        raise DataError(f"{data}: no log of a server, and no LaMP files")
    was.pop("start_from", None)
    changes: dict[str, Any] = {
        "name": f"{base}-again-{dataset.fingerprint()[:8]}",
        "data": {"path": str(folder), "split": split, "shares": was["data"]["shares"]},
        "model": {**was["model"], **_places(config["model"])},
        "task": config["task"],
        "trials": trials,
    }
    return parse_spec({**was, **changes}, f"the spec of {deploy}")


def by_user(spec: StudySpec) -> StudySpec:
    """The study with strengths of each user's own among what is tried; UsageError where its chain has none."""
    others = [name for name in spec.space_of.chain if name not in ("prompt", "calibration")]
    if others or "calibration" not in spec.space_of.chain:
        raise UsageError(
            "--by-user: strengths of each user's own are for a calibration of the model's own scores, and the deployed "
            f"chain is {', '.join(spec.space_of.chain)}"
        )
    space = {name: value for name, value in spec.space.items() if name not in PER_USER}
    raw = spec.model_dump(mode="json", exclude_none=True, exclude={"objective"})
    changes = {"name": f"{spec.name}-by-user", "chain": list(spec.space_of.chain)}
    return parse_spec({**raw, **changes, "space": {**space, PER_USER[0]: list(OWN)}}, f"the spec of {spec.name}")


def _places(model: Mapping[str, Any]) -> dict[str, Any]:
    """Where a config's model lies, the commit of a hub model, and where its retriever lies where there is one."""
    told, retriever = {name: model.get(name) for name in ("path", "revision")}, model.get("retriever")
    return {**told, **({"retriever": retriever["path"]} if retriever else {})}


def deployed_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Full name -> value of what is deployed."""
    return {f"{entry['stage']}.{key}": value for entry in config["chain"] for key, value in entry["params"].items()}


def fixed_below(config: Mapping[str, Any], home: Path) -> dict[str, Any]:
    """The deployed values of what the deployed study had from the one that it started from, by full name."""
    provenance, storage = config["provenance"], config["provenance"]["spec"].get("storage")
    try:
        record = find_study(provenance["study"], home, storage).user_attrs[RECORD]
    except UsageError as error:
        log.warning("no stage stays fixed: %s", error)
        return {}
    values = deployed_values(config)
    return {name: values[name] for name in record.get("started", {})}


def begin_with(opened: OpenStudy, config: Mapping[str, Any]) -> dict[str, Any]:
    """Queue the deployed parameters as the first trial, as far as the space holds them; what was queued.

    Where strengths of each user's own are tried, the same with these is the second one.
    """
    full, inside = deployed_values(config), dict[str, Any]()
    for name, room in opened.space.items():
        values = [value for key, value in full.items() if name in (key, key.partition(".")[2])]
        if len(values) == 1 and holds(name, room, values[0]):
            inside[name] = values[0]
    if inside:
        attributes: dict[str, Any] = {POINT: inside, "deployed": True}
        opened.study.enqueue_trial(inside, user_attrs=attributes, skip_if_exists=True)
    own = next((name for name in opened.space if name in PER_USER), None)
    if inside and own is not None:
        point = {**inside, own: "all"}
        opened.study.enqueue_trial(point, user_attrs={POINT: point}, skip_if_exists=True)
    return inside


def retune(
    spec: StudySpec, deploy: Path, home: Path, watcher: Watcher | None = None, why: Sequence[str] = ()
) -> dict[str, Any]:
    """Run the study and promote what it finds over what stands; the promotion's verdict, and what it began with.

    `why`: what it was begun for, which the study remembers beside the generation that stood.
    """
    config = read_config(deploy)
    opened = open_study(spec, home, started=fixed_below(config, home))
    began = begin_with(opened, config)
    of = {"generation": config["generation"], "config": config_digest(config), "deploy": str(deploy.resolve())}
    opened.study.set_user_attr(AGAIN, {**of, "why": list(why), "began_with": began})
    result = run_study(spec, home, watcher)
    told: dict[str, Any] = {
        "study": spec.name,
        "began_with": began,
        "fixed": opened.record.get("started", {}),
        "questions": sum(len(opened.splits.part(name)) for name in PARTS),
        "trials": result.trials,
        "why": list(why),
        "stopped_by": result.stopped_by,
    }
    if result.stopped_by is not None:
        return {**told, "promoted": False, "reason": f"signal {result.stopped_by} stopped the study"}
    return {**told, **promote(open_study(spec, home), deploy, with_cold_start=False)}
