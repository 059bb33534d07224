"""Lines of the log: a question in the shape of LaMP's, with what was answered.

Where texts are not kept, a text is its BLAKE2b under the log's own key: equal texts are seen to be equal, and nobody
without the key can try texts.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any, Literal, NamedTuple

from personalization.data.dates import read_date, written
from personalization.data.records import HistoryItem, Question
from personalization.deployment import Prediction
from personalization.tasks import Task
from serving.place import Served

Line = dict[str, Any]


class Asked(NamedTuple):
    """A question on its way. `user`: as it was given, None where it was not; `arm`: what it is answered by.

    `split`: the share of users that the other config answers; `uncounted`: items of the history with a label that is
    none of the deployment's.
    """

    question: Question
    user: str | None
    arm: Literal["a", "b"]
    split: float
    uncounted: int


HASHED = "blake2b:"
"""What a text that is not kept begins with."""


def line_of(asked: Asked, found: Prediction, by: Served, at: datetime, texts: bool, key: str) -> Line:
    """A question that was answered by `by`. `named`: whether the user was given."""
    question, user = asked.question, asked.user
    fields = by.deployment.terms.task.fields
    profile = [_profile(item, fields.text, fields.label) for item in question.history] if texts else []
    return {
        "id": question.id,
        "user_id": user if user is not None else question.user_id,
        "input": question.text if texts else hashed(question.text, key),
        **({} if question.date is None else {"date": written(question.date)}),
        "profile": profile,
        "at": at.isoformat(timespec="milliseconds"),
        "named": user is not None,
        "known": len(question.history),
        "chars": len(question.text),
        **_answer(found, by),
        "arm": asked.arm,
        "split": asked.split,
        "generation": by.generation,
    }


def shadow_line(of: str, found: Prediction, by: Served) -> Line:
    """What the other config says to a question of the log."""
    return {"of": of, **_answer(found, by)}


def _answer(found: Prediction, by: Served) -> Line:
    log_probs = {label: round(value, 6) for label, value in found.log_probs.items()}
    return {"answer": found.label, "log_probs": log_probs, "prior": found.prior_mode, "config": by.digest}


def _profile(item: HistoryItem, text: str, label: str | None) -> Line:
    own = {} if label is None or item.label is None else {label: item.label}
    dated = {} if item.date is None else {"date": written(item.date)}
    return {"id": item.id, text: item.text, **own, **dict(item.more), **dated}


def hashed(text: str, key: str) -> str:
    """`HASHED` and the keyed BLAKE2b of a text, 16 bytes in hex."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), key=key.encode(), digest_size=16)
    return HASHED + digest.hexdigest()


def item_of(record: Line, label: str, task: Task) -> HistoryItem:
    """A logged question and its label as an item of the user's history."""
    date = read_date(record.get("date", record["at"]))
    return HistoryItem(record["request"], task.item(record["input"]), label, date)


def is_kept(record: Line) -> bool:
    """Whether a logged question can be read, and its user is known."""
    return bool(record["named"]) and not record["input"].startswith(HASHED)
