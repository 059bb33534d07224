"""The folder of files that documents one result.

    predictions.jsonl   a line for each question: gold, prediction, baseline's prediction, probabilities, prior mode
    summary.csv, .md    metrics of baseline and candidate, with the gold labels' entropy and top-1 share beside them
    significance.json   the paired tests          impact.json   users by gain
    breakdown.json, .md     by label, by group, by whether a user has a history, by user
    personal.json, .md      what of the gain is general and what personal, and the cost, where given
    confusion_matrix.png, reliability.png, and the study's history.png or pareto.png where given

`read_summary` reads summary.csv, else summary.md, else recomputes the metrics from predictions.jsonl, and says which.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from personalization.errors import DataError
from personalization.evaluation import Evaluation, changes
from personalization.files import write_atomic
from tracking import figures
from tracking.breakdown import Groups, breakdown, breakdown_table
from tracking.impact import impact
from tracking.parts import cost_said, parts_table, sentences
from tracking.significance import significance

LAST = "personal.json"
"""What is written last: where it is, the rest is, too."""
COLUMNS = ("metric", "baseline", "candidate", "gold")
Row = tuple[str, float | None, float | None, float | None]


class Summary(NamedTuple):
    """Rows of (metric, baseline, candidate, gold) and the file they came from."""

    source: str
    rows: list[Row]


def summary_rows(baseline: Evaluation, candidate: Evaluation) -> list[Row]:
    """One row a metric."""
    gold: dict[str, float] = {"entropy": candidate.gold_entropy(), "top1_share": candidate.gold_top1_share()}
    rows: list[Row] = [
        (name, baseline.metrics[name], value, gold.get(name)) for name, value in candidate.metrics.items()
    ]
    return rows + [(name, None, value, None) for name, value in changes(baseline, candidate).items()]


def write_report(
    folder: Path,
    baseline: Evaluation,
    candidate: Evaluation,
    note: str,
    extra: Mapping[str, bytes | str] | None = None,
    groups: Groups | None = None,
    told: Mapping[str, Any] | None = None,
) -> None:
    """Write every file. `note` says on which users the figures were measured; `groups`: those of the users,
    by kind.

    `told`: the `parts` of the gain (`parts`), the `cost`, and what else `LAST` is to say.
    """
    rows, parts = summary_rows(baseline, candidate), breakdown(baseline, candidate, groups or {})
    personal = {} if told is None else _personal(told, note)
    files: dict[str, bytes | str] = {
        "predictions.jsonl": _predictions(baseline, candidate),
        "summary.csv": _csv(rows),
        "summary.md": _markdown(rows, note) + personal.pop("summary", ""),
        "significance.json": json.dumps({"note": note, **significance(baseline, candidate)}, indent=2) + "\n",
        "impact.json": json.dumps({"note": note, **impact(baseline, candidate)}, indent=2) + "\n",
        "breakdown.json": json.dumps({"note": note, **parts}, indent=2) + "\n",
        "breakdown.md": breakdown_table(parts, note),
        "confusion_matrix.png": figures.confusion_matrix(candidate),
        "reliability.png": figures.reliability_diagram(candidate),
        **(extra or {}),
        **personal,
    }
    for name, content in files.items():
        write_atomic(folder / name, content)


def _personal(told: Mapping[str, Any], note: str) -> dict[str, str]:
    """The files that say whether the gain is personal and what it costs, and lines for the summary."""
    lines = [*sentences(told["parts"]), cost_said(told["cost"])]
    return {
        "personal.md": parts_table(told["parts"], note) + f"\n{lines[-1]}\n",
        LAST: json.dumps({"note": note, **told}, indent=2) + "\n",
        "summary": "\n" + "".join(f"- {line}\n" for line in lines),
    }


def _predictions(baseline: Evaluation, candidate: Evaluation) -> str:
    labels, lines = candidate.labels, []

    def said(log_probs: NDArray[np.floating]) -> dict[str, float]:
        return {label: round(float(value), 6) for label, value in zip(labels, log_probs, strict=True)}

    for i, question_id in enumerate(candidate.question_ids):
        record = {
            "id": question_id,
            "user_id": candidate.user_ids[i],
            "gold": labels[candidate.gold[i]],
            "prediction": labels[candidate.predicted[i]],
            "baseline_prediction": labels[baseline.predicted[i]],
            "correct": bool(candidate.correct[i]),
            "changed": bool(candidate.predicted[i] != baseline.predicted[i]),
            "prior_mode": candidate.prior_modes[i],
            "log_probs": said(candidate.log_probs[i]),
            "baseline_log_probs": said(baseline.log_probs[i]),
        }
        lines.append(json.dumps(record, ensure_ascii=False))
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> list[str]:
    name, *values = row
    return [name, *("" if value is None else f"{value:.6f}" for value in values)]


def _csv(rows: list[Row]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(map(_cells, rows))
    return buffer.getvalue()


def _markdown(rows: list[Row], note: str) -> str:
    lines = [f"# Summary\n\n{note}\n", "| " + " | ".join(COLUMNS) + " |", "|---|---:|---:|---:|"]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def read_summary(folder: Path) -> Summary:
    """The summary of a result folder, from the best source there is."""
    if (path := folder / "summary.csv").is_file():
        with path.open(newline="", encoding="utf-8") as file:
            return Summary(path.name, [_row(cells, path) for cells in list(csv.reader(file))[1:]])
    if (path := folder / "summary.md").is_file():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
        return Summary(path.name, [_row([c.strip() for c in line.strip("|").split("|")], path) for line in lines[2:]])
    if (path := folder / "predictions.jsonl").is_file():
        return Summary(path.name, summary_rows(*read_predictions(path)))
    raise DataError(f"{folder}: none of summary.csv, summary.md, predictions.jsonl is here; give a result folder")


def _row(cells: list[str], path: Path) -> Row:
    try:
        name, *values = cells
        baseline, candidate, gold = (float(v) if v else None for v in values)
    except ValueError:
        raise DataError(f"{path}: {cells} is no row of {', '.join(COLUMNS)}") from None
    return name, baseline, candidate, gold


def read_predictions(path: Path) -> tuple[Evaluation, Evaluation]:
    """(baseline, candidate) as written by `write_report`."""
    records: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            records.append(
                {key: record[key] for key in ("id", "user_id", "gold", "log_probs", "baseline_log_probs", "prior_mode")}
            )
        except (json.JSONDecodeError, KeyError) as error:
            raise DataError(f"{path}: record {number}: not a prediction: {error}") from None
    if not records:
        raise DataError(f"{path}: no predictions in it")
    labels = tuple(records[0]["log_probs"])
    column = {label: i for i, label in enumerate(labels)}

    def evaluation(key: str) -> Evaluation:
        return Evaluation(
            labels,
            tuple(r["id"] for r in records),
            tuple(r["user_id"] for r in records),
            np.array([column[r["gold"]] for r in records], dtype=np.int64),
            np.array([[r[key][label] for label in labels] for r in records]),
            [r["prior_mode"] for r in records],
        )

    return evaluation("baseline_log_probs"), evaluation("log_probs")
