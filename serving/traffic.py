"""What went through a server, read from its log: answers, the labels that came, and what the shadow said.

Rows are in the order of time. A label that came twice counts as it came last; a comparison counts what came first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from personalization.errors import DataError, UsageError
from personalization.evaluation import Evaluation
from serving.log import Record, placed, records, segments


@dataclass(frozen=True)
class Traffic:
    """n logged answers; the names in `COLUMNS` are arrays with a row an answer, text as objects.

    `times`: ISO, UTC; `named`: whether the user was given; `log_probs`: float [n, K]; `gold`: -1 where no label came;
    `first`: the label that came first, where another followed; `came`: the place of that one among all that came;
    `chars`, `known`: characters of the text and items of the history; `shadow`: row -> what the other config said,
    float [K], none while there is a split; `split`: the share of users that the other config is to answer; `since`:
    asked since this split has had its present other config; `left_out`: answers of other configs before the present
    one, which are compared with nothing.
    """

    labels: tuple[str, ...]
    requests: NDArray[np.object_]
    times: NDArray[np.object_]
    users: NDArray[np.object_]
    named: NDArray[np.bool_]
    log_probs: NDArray[np.float64]
    priors: NDArray[np.object_]
    gold: NDArray[np.int64]
    first: NDArray[np.int64]
    came: NDArray[np.int64]
    arms: NDArray[np.object_]
    configs: NDArray[np.object_]
    generations: NDArray[np.int64]
    chars: NDArray[np.int64]
    known: NDArray[np.int64]
    since: NDArray[np.bool_]
    shadow: dict[int, NDArray[np.float64]]
    split: float = 0.0
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.requests)

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """Columns of the answers, int [n]."""
        return np.asarray(self.log_probs.argmax(axis=1), dtype=np.int64)

    @cached_property
    def labelled(self) -> NDArray[np.int64]:
        """Rows with a label."""
        return np.flatnonzero(self.gold >= 0)

    def only(self, rows: NDArray[np.int64]) -> Traffic:
        """These rows alone."""
        places = {int(row): place for place, row in enumerate(rows)}
        shadow = {places[row]: said for row, said in self.shadow.items() if row in places}
        chosen: dict[str, Any] = {name: getattr(self, name)[rows] for name in COLUMNS}
        return replace(self, **chosen, shadow=shadow)

    def evaluation(self, rows: NDArray[np.int64], log_probs: NDArray[np.float64] | None = None) -> Evaluation:
        """These rows as an evaluation, with their own log-probabilities or others [len(rows), K]."""
        return Evaluation(
            self.labels,
            tuple(self.requests[rows]),
            tuple(self.users[rows]),
            self.gold[rows],
            self.log_probs[rows] if log_probs is None else log_probs,
            list(self.priors[rows]),
        )


COLUMNS = tuple(field.name for field in fields(Traffic) if field.name not in ("labels", "shadow", "split", "left_out"))


def log_folder(home: Path, deploy: Path) -> Path:
    """Where a deployment is logged unless another place is named."""
    place = hashlib.sha256(str(deploy.resolve()).encode()).hexdigest()[:12]
    return home / "serving" / f"{deploy.resolve().name}-{place}"


def read_traffic(folder: Path) -> Traffic:
    """The traffic of a log; DataError where there is none."""
    if not segments(folder, "questions"):
        raise DataError(f"{folder}: no log of a server; give the folder that `chamtune serve` names")
    found = [(path, number, _without_texts(line)) for path, number, line in placed(folder, "questions")]
    if not found:
        raise DataError(f"{folder}: nothing was asked yet")
    lines = [line for _, _, line in found]
    labels, told = tuple(lines[-1]["log_probs"]), about(folder)
    column = {label: number for number, label in enumerate(labels)}
    place = {line["request"]: row for row, line in enumerate(lines)}
    gold, first, came = np.full((3, len(lines)), -1, dtype=np.int64)
    for number, label in enumerate(records(folder, "feedback")):
        if label["of"] in place and label["label"] in column:
            row = place[label["of"]]
            gold[row] = column[label["label"]]
            if first[row] < 0:
                first[row], came[row] = gold[row], number
    split, other = float(told.get("split", 0.0)), told.get("other_config")
    beside = [one for one in placed(folder, "shadow") if one[2]["of"] in place]
    since = _since(lines, split, other, {place[one[2]["of"]] for one in beside})
    other = other or (beside[-1][2]["config"] if beside else None)
    said = {} if split else {place[one[2]["of"]]: _row(*one, labels) for one in beside if one[2]["config"] == other}
    before = sum(line["arm"] == "b" for line, present in zip(lines, since, strict=True) if not present)

    def of(name: str, kind: type = object) -> NDArray[Any]:
        return np.array([line[name] for line in lines], dtype=kind)

    return Traffic(
        labels,
        of("request"),
        of("at"),
        of("user_id"),
        of("named", np.bool_),
        np.array([_row(*one, labels) for one in found]),
        of("prior"),
        gold,
        first,
        came,
        of("arm"),
        of("config"),
        of("generation", np.int64),
        of("chars", np.int64),
        of("known", np.int64),
        since,
        said,
        split,
        len(beside) - len(said) + before,
    )


def _without_texts(line: Record) -> Record:
    """What no report reads is not held for a whole log."""
    return {name: value for name, value in line.items() if name not in ("input", "profile")}


def _since(lines: Sequence[Record], split: float, config: str | None, shadowed: Container[int]) -> NDArray[np.bool_]:
    """Which lines came since the present split and its present other config began, bool [n]; none without a split.

    Logs of earlier versions do not note the split in their lines: there it begins with the first answer of arm b after
    what a shadow answered.
    """
    if split == 0:
        return np.zeros(len(lines), dtype=bool)
    noted, in_b = any("split" in line for line in lines), [line["arm"] == "b" for line in lines]
    config = config or next((line["config"] for line, b in zip(lines[::-1], in_b[::-1], strict=True) if b), None)
    before = [
        row
        for row, line in enumerate(lines)
        if row in shadowed or (noted and line.get("split") != split) or (in_b[row] and line["config"] != config)
    ]
    begin = max(before, default=-1) + 1
    if not noted:
        begin = next((row for row in range(begin, len(lines)) if in_b[row]), begin)
    return np.arange(len(lines)) >= begin


def about(folder: Path) -> dict[str, Any]:
    """How a log's server was started last: deploy, other, its config, split; empty where it is not noted."""
    path = folder / "about.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise DataError(f"{path}: is no JSON object; restore it, or take it away")
    return found


def refuse_other_labels(folder: Path, labels: Sequence[str]) -> None:
    """UsageError where a log was begun with other labels."""
    first = next(records(folder, "questions"), None)
    if first is not None and set(first["log_probs"]) != set(labels):
        raise UsageError(
            f"{folder}: its answers have the labels {_listed(first['log_probs'])}, and this deployment's are "
            f"{_listed(labels)}; give it another folder with --log"
        )


def check_labels(path: Path, number: int, line: Record, labels: Sequence[str]) -> None:
    """DataError where a line of a log says something of other labels."""
    if set(line["log_probs"]) != set(labels):
        raise DataError(
            f"{path}: line {number} has the labels {_listed(line['log_probs'])}, where {_listed(labels)} are wanted; "
            "keep the answers of each deployment in a folder of their own"
        )


def _row(path: Path, number: int, line: Record, labels: Sequence[str]) -> NDArray[np.float64]:
    check_labels(path, number, line, labels)
    return np.array([line["log_probs"][label] for label in labels])


def _listed(labels: Iterable[str]) -> str:
    return f"{', '.join(labels):.100}"
