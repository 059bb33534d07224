"""A deployment that answers and remembers: what HTTP, shadow, split and feedback have in common.

    question -> batch -> the config of its arm -> line in the log -> answer      (-> shadow -> line in its log)

Everything that uses the model runs in one thread, and so does everything that appends to the log of questions. A line
is written before its answer is given, so that a process that is killed loses no answer that somebody has; it lies on
the disk within a second. Feedback lies on the disk before it is acknowledged.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Literal, NamedTuple

from personalization.data.records import HistoryItem, Question
from personalization.deployment import Prediction
from personalization.errors import DataError, UnavailableError, UsageError
from personalization.files import locked, write_atomic
from serving.arms import arm_of
from serving.batching import Batcher
from serving.gauges import Gauges
from serving.histories import Histories
from serving.lines import Asked, is_kept, item_of, line_of, shadow_line
from serving.log import Log
from serving.place import LOOK_S, Place
from serving.schemas import Ask, Feedback, question_of, uncounted
from serving.traffic import refuse_other_labels

log = logging.getLogger(__name__)

TOKENS = 16_384
"""Of a batch, at most; a text has no more tokens than bytes. Below it the model splits by measured tokens."""

RECENT = 2
"""Passes that are remembered for a shadow, which answers a batch right after it was answered."""


class NoSuchRequest(Exception):
    """Feedback to a request that is not in the log."""


@dataclass(frozen=True)
class Terms:
    """How a deployment is served. `texts`: keep them, so that histories grow and the log can be answered again."""

    folder: Path
    texts: bool = False
    split: float = 0.0
    keep: int | None = None


class Given(NamedTuple):
    """An answer, its name in the log, and what gave it; `uncounted` as of `Asked`."""

    prediction: Prediction
    request: str
    generation: int
    arm: Literal["a", "b"]
    uncounted: int


class Service:
    """A place that answers, with perhaps another one beside it. Use it from one event loop."""

    def __init__(self, place: Place, terms: Terms, other: Place | None = None) -> None:
        if terms.split and other is None:
            raise UsageError("a split needs the other config: --shadow OTHER")
        refuse_other_labels(terms.folder, place.now.deployment.terms.labels)
        self.place, self.other, self.terms = place, other, terms
        self._own = ExitStack()  # the lock of the folder
        self._own.enter_context(locked(terms.folder / ".lock", partial(_refuse, terms.folder)))
        self.salt = _salt(terms.folder)
        _note_about(place, terms, other)
        self.gauges = Gauges(place.now.deployment.terms.labels)
        self.questions = Log(terms.folder, "questions", keep=terms.keep)
        self.feedback = Log(terms.folder, "feedback", keep=terms.keep)
        self.shadow = Log(terms.folder, "shadow", keep=terms.keep)
        self.histories = Histories(terms.folder / "histories.db") if terms.texts else None
        self._numbers = count()
        self._batches = Batcher("model", self._answer, lambda one: len(one.question.text.encode()), TOKENS)
        self._labels = Batcher("feedback", self._note)
        self._shadows: set[asyncio.Future[None]] = set()
        self._watched()

    def _watched(self) -> None:
        scorer = self.place.now.deployment.scorer
        scorer.recent = 0 if self.other is None else RECENT
        if scorer.kind != "encoder":
            scorer.watch = self.gauges.scored
        self.gauges.generation.set(self.place.now.generation)
        self.gauges.swaps.set(self.place.swaps)
        self.gauges.failed.set(self.place.failed is not None)

    async def answer(self, asks: Sequence[Ask]) -> list[Given]:
        """Answer questions; DataError where one cannot be answered, UnavailableError where too many wait."""
        return await self._batches.of([self._asked(ask) for ask in asks])

    def _asked(self, ask: Ask) -> Asked:
        known: tuple[HistoryItem, ...] = ()
        if self.histories is not None and ask.user is not None and ask.history is None:
            known = self.histories.of(ask.user)
        terms = self.place.now.deployment.terms
        question = question_of(ask, next(self._numbers), known, terms)
        arm = arm_of(ask.user, self.salt, self.terms.split) if ask.user is not None and self.terms.split else "a"
        return Asked(question, ask.user, arm, self.terms.split, uncounted(question.history, terms.labels))

    def _answer(self, asked: list[Asked]) -> list[Given]:
        """One batch, in the model's thread: each arm by its own config, then the log."""
        started, now = time.perf_counter(), datetime.now(UTC)
        served = {"a": self.place.now, **({} if self.other is None else {"b": self.other.now})}
        by_row: dict[int, Prediction] = {}
        for arm, by in served.items():
            rows = [row for row, one in enumerate(asked) if one.arm == arm]
            if rows:
                by_row.update(zip(rows, by.deployment.predict([asked[row].question for row in rows]), strict=True))
        found = [by_row[row] for row in range(len(asked))]
        names = self.questions.append(
            [
                line_of(one, answer, served[one.arm], now, self.terms.texts, self.salt)
                for one, answer in zip(asked, found, strict=True)
            ]
        )
        self._measured(asked, found, time.perf_counter() - started)
        if self.other is not None and not self.terms.split:
            self._loop.call_soon_threadsafe(self._begin_shadow, [one.question for one in asked], names)
        return [
            Given(answer, name, served[one.arm].generation, one.arm, one.uncounted)
            for one, answer, name in zip(asked, found, names, strict=True)
        ]

    def _measured(self, asked: Sequence[Asked], found: Sequence[Prediction], seconds: float) -> None:
        own = self.gauges
        own.answered(found, [not one.question.history for one in asked], [one.arm for one in asked])
        own.uncounted.inc(sum(one.uncounted for one in asked))
        own.batch.observe(len(asked))
        own.seconds.observe(seconds)
        scorer = self.place.now.deployment.scorer
        own.texts.set(scorer.embedder.texts_asked)
        own.hits.set(scorer.embedder.texts_asked - scorer.embedder.texts_embedded)

    def _begin_shadow(self, questions: list[Question], names: list[str]) -> None:
        work = asyncio.ensure_future(self._batches.soon(partial(self._shadow, questions, names)))
        self._shadows.add(work)
        work.add_done_callback(self._shadow_done)

    def _shadow(self, questions: list[Question], names: list[str]) -> None:
        """The other config's answers to a batch; a pass over the same prompts is not run again."""
        assert self.other is not None
        by = self.other.now
        found = by.deployment.predict(questions)
        self.shadow.append([shadow_line(name, one, by) for name, one in zip(names, found, strict=True)])

    def _shadow_done(self, work: asyncio.Future[None]) -> None:
        self._shadows.discard(work)
        if not work.cancelled() and (error := work.exception()) is not None:
            self.gauges.shadow_failures.inc()
            log.error("the shadow failed on a batch", exc_info=error)

    async def note(self, feedback: Feedback) -> bool:
        """Note the label of an answered question; whether it is in the history. NoSuchRequest: it is not in the log."""
        labels = self.place.now.deployment.terms.labels
        if feedback.label not in labels:
            raise DataError(f"label {feedback.label!r:.80} is none of {', '.join(labels)}")
        (noted,) = await self._labels.of([feedback])
        if noted is None:
            raise NoSuchRequest(f"request {feedback.request} is not in the log")
        return noted

    def _note(self, feedback: list[Feedback]) -> list[bool | None]:
        """Labels on their way to the disk, in a thread of their own; None: no such request."""
        asked = [self.questions.find(one.request) for one in feedback]
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        known = [(one, record) for one, record in zip(feedback, asked, strict=True) if record is not None]
        self.feedback.append([{"of": one.request, "label": one.label, "at": now} for one, _ in known])
        self.feedback.sync()
        for one, record in known:
            self.gauges.feedback.labels(str(record["answer"] == one.label).lower()).inc()
        if self.histories is not None:
            task = self.place.now.deployment.terms.task
            named = [(one, record) for one, record in known if is_kept(record)]
            self.histories.add([(record["user_id"], item_of(record, one.label, task)) for one, record in named])
        return [None if record is None else self.histories is not None and is_kept(record) for record in asked]

    async def run(self) -> None:
        """Look for new generations and have the logs on the disk, until cancelled; a log that is not is said once."""
        said = None
        while True:
            await asyncio.sleep(LOOK_S)
            await self.place.look()
            if self.other is not None and await self.other.look():
                try:
                    _note_about(self.place, self.terms, self.other)
                except OSError as error:  # a disk that does not take it keeps nobody from an answer
                    log.error("about.json is not the newest: %s", error)
            self._watched()
            try:
                await asyncio.to_thread(self._sync)  # beside the model, which goes on
                said = None
            except UnavailableError as error:
                if said is None:
                    log.error("what was answered is not on the disk yet: %s", error)
                said = error

    def _sync(self) -> None:
        self.questions.sync()
        self.shadow.sync()

    def begin(self) -> asyncio.Task[None]:
        """Run in this event loop."""
        self._loop = asyncio.get_running_loop()
        return asyncio.create_task(self.run())

    async def end(self) -> None:
        """Wait for what runs, and have everything on the disk."""
        await asyncio.sleep(0)
        await asyncio.gather(*self._shadows, return_exceptions=True)
        self._batches.close()
        self._labels.close()
        for one in (self.questions, self.feedback, self.shadow, self.histories):
            if one is not None:
                one.close()
        self._own.close()


def _note_about(place: Place, terms: Terms, other: Place | None) -> None:
    """Note beside the log what it is of."""
    told = {
        "deploy": str(place.path.resolve()),
        "other": None if other is None else str(other.path.resolve()),
        "other_config": None if other is None else other.now.digest,
        "split": terms.split,
    }
    write_atomic(terms.folder / "about.json", json.dumps(told) + "\n")


def _refuse(folder: Path) -> None:
    raise UsageError(f"{folder}: another server logs there; give this one a folder with --log") from None


def _salt(folder: Path) -> str:
    """The log's own secret: it assigns users to arms and hashes texts, and stays as long as the folder."""
    path = folder / "salt"
    if not path.exists():
        write_atomic(path, secrets.token_hex(16))
        path.chmod(0o600)
    return path.read_text(encoding="ascii").strip()
