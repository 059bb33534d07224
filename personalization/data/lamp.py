"""LaMP files of the tasks that classify, read and written.

Questions: a list of {"id", "input", "profile": [...]}, time-based data with "user_id" and "date" on each profile item,
and on the question where it is known; without "user_id" each question is its own user. Answers: {"task", "golds":
[{"id", "output"}]}, or "output" beside the question. Official file names come in pairs `*_questions.json` /
`*_outputs.json`. JSON Lines hold the merged form. Format: github.com/LaMP-Benchmark/LaMP.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from personalization.data.dates import written
from personalization.data.defects import Checked, Defect, unreadable
from personalization.data.json_stream import stream_records
from personalization.data.reader import Reader
from personalization.data.records import Dataset
from personalization.errors import DataError
from personalization.files import write_atomic
from personalization.tasks import Task, Terms


def question_files(folder: Path, part: str = "") -> list[Path]:
    """The questions files of a folder, those alone that are named after a part."""
    found = [*folder.glob(f"{part}*_questions.json"), *folder.glob(f"{part}*.jsonl")]
    return sorted(path for path in found if not path.name.endswith("_outputs.jsonl"))


def outputs_of(questions: Path) -> Path:
    """Where the answers to a questions file are; the file itself where its name does not tell."""
    return questions.with_name(questions.name.replace("_questions.json", "_outputs.json"))


def files_read(path: Path) -> list[Path]:
    """The files that questions and answers under a folder, or of one file, are read from."""
    found = question_files(path) if path.is_dir() else [path]
    return [file for questions in found for file in (questions, outputs_of(questions))]


def file_pairs(path: Path) -> list[tuple[Path, Path | None]]:
    """(questions, outputs) under a folder, or for one questions file; outputs is None where there are none."""
    if path.is_dir():
        found = question_files(path)
        if not found:
            raise DataError(f"{path}: no *_questions.json or *.jsonl in this folder")
    elif path.is_file():
        found = [path]
    else:
        raise DataError(f"{path}: no such file or folder")
    pairs = [(questions, outputs_of(questions)) for questions in found]
    return [
        (questions, outputs if outputs != questions and outputs.is_file() else None) for questions, outputs in pairs
    ]


def check_dataset(path: Path, terms: Terms | None = None, task: Task | None = None) -> Checked:
    """Read a folder or questions file and report every defect; a file that cannot be decoded ends the reading.

    With `terms` the questions are to be answered as of that task with those labels: other ones are a fatal defect,
    prompts need list no labels, and answers are not looked at. `task`: what the files are of; without it they say it.
    """
    reader, head = Reader(terms, task), dict[str, Any]()
    pairs = file_pairs(path)
    answered = terms is None and any(outputs is not None for _, outputs in pairs)
    for questions, outputs in pairs:
        if answered and outputs is None and questions.suffix == ".json":
            problem = "has no outputs file beside it; its questions are left out"
            reader.defects.add(Defect(str(questions), 0, "", problem, False))
            continue
        try:
            for number, raw in stream_records(questions, head):
                reader.add_question((questions, number), raw)
            if outputs is not None:
                for number, raw in stream_records(outputs, head):
                    if terms is None:
                        reader.add_gold((outputs, number), raw)
        except DataError as error:
            file, _, problem = str(error).partition(": ")
            return unreadable(Path(file), problem)
    name = head.get("task")
    return reader.finish(name if isinstance(name, str) and name else None, str(path))


def read_dataset(path: Path, task: Task | None = None) -> Dataset:
    """The data set under a folder or file, with a warning for each kind of defect; DataError where it is unusable."""
    return check_dataset(path, task=task).usable()


def write_predictions(
    path: Path, name: str, answers: Mapping[str, str], numbers: Mapping[str, int] | None = None
) -> None:
    """Write the official LaMP predictions file of a task by this name; `numbers`: ids that are written as numbers."""
    golds = [{"id": (numbers or {}).get(key, key), "output": label} for key, label in answers.items()]
    write_atomic(path, json.dumps({"task": name, "golds": golds}, ensure_ascii=False) + "\n")


def write_dataset(folder: Path, name: str, dataset: Dataset) -> tuple[Path, Path]:
    """Write a data set as official, time-based LaMP files `NAME_questions.json` and `NAME_outputs.json`."""
    fields, named = dataset.task.fields, dataset.task.official or dataset.task.name
    questions: list[dict[str, Any]] = []
    for q in dataset.questions:
        profile = [
            {
                "id": h.id,
                fields.text: h.text,
                **({fields.label: h.label} if fields.label else {}),
                **dict(h.more),
                "date": written(h.date),
            }
            for h in q.history
        ]
        dated = {} if q.date is None else {"date": written(q.date)}
        questions.append({"id": q.id, "user_id": q.user_id, "input": q.text, **dated, "profile": profile})
    paths = folder / f"{name}_questions.json", folder / f"{name}_outputs.json"
    write_atomic(paths[0], json.dumps(questions, ensure_ascii=False) + "\n")
    golds = {q.id: q.gold for q in dataset.questions if q.gold is not None}
    write_predictions(paths[1], named, golds)
    return paths
