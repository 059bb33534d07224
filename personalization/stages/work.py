"""Questions on their way through a chain, and what runs the model for them.

Nothing is run until scores are read. A stage gives back the work with its own part done: other prompts, an edit of the
forward pass, a table of its own, the answer. What was run is kept by what it depends on: the questions, and stages with
their parameters below.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from personalization.backbones import SCALE
from personalization.backbones.cached import CachedScorer
from personalization.data.records import Dataset
from personalization.data.splits import user_blocks
from personalization.methods.history.asking import Asking
from personalization.methods.history.ranking import Histories
from personalization.methods.taste.calibration import Calibrated
from personalization.methods.taste.priors import log_softmax
from personalization.scoring.edits import Edit
from personalization.scoring.store import Progress
from personalization.stages.holdings import May

BLOCKS = 5
"""Blocks of users in which a part is run under edits, so that a trial may be stopped between them."""
KEPT = 64
"""Results of a kind that stay in memory."""
KEPT_OF = {
    "directions": 4,
    "heads": 4,
    "states": 4,
    "adapters": 8,
    "fitted adapter": 8,
    "fitted steering": 8,
    "fixed": 16,
}
"""The same of what holds states, adapters or tokens."""

Scores = NDArray[np.float32]
Rows = NDArray[np.int64]


class Own(NamedTuple):
    """Log-probabilities [n, K] of a stage that answers by itself, and their weight beside what stands below."""

    table: Scores
    weight: float


@dataclass(frozen=True)
class Work:
    """n questions and what was done for them.

    `of`: names the questions, None where nothing is kept in memory; `done`: the stages so far with their parameters.
    `blend`: the weight of what the model says under its edits beside what it says without; `partial`: an edit may leave
    a question alone; `scale`: of an encoder's similarities. `blocks`: rows that are run together, by name. `parent`:
    the work that this is a part of; `seams`: where the questions of one part end, if they are asked part by part, as
    they have been before.
    """

    dataset: Dataset
    asking: Asking
    prompts: tuple[str, ...]
    spoken: tuple[str, ...]
    of: Hashable | None = None
    done: tuple[Any, ...] = ()
    shortened: int = 0
    scale: float = SCALE
    edits: tuple[Edit, ...] = ()
    blend: float = 1.0
    partial: bool = False
    own: Own | None = None
    answer: Calibrated | None = None
    blocks: tuple[tuple[Hashable, Rows], ...] = ()
    parent: tuple[Work, Rows] | None = None
    seams: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def key(self) -> Hashable | None:
        """What this work depends on."""
        return None if self.of is None else (self.of, self.done)

    @property
    def touched(self) -> NDArray[np.bool_]:
        """Which questions an edit moves, [n]."""
        out = np.zeros(len(self), dtype=np.bool_)
        for edit in self.edits:
            out |= edit.touched
        return out

    def only(self, rows: Rows, of: Hashable | None = None) -> Work:
        """The work for some of the questions, under this name."""
        return replace(
            self,
            dataset=Dataset(self.dataset.task, self.dataset.labels, tuple(self.dataset.questions[row] for row in rows)),
            prompts=tuple(self.prompts[row] for row in rows),
            of=of,
            edits=tuple(edit.only(rows) for edit in self.edits),
            own=None if self.own is None else Own(self.own.table[rows], self.own.weight),
            blocks=(),
            parent=(self, rows),
            seams=(),
        )

    def first(self, count: int) -> Work:
        """The first blocks of the work."""
        chosen = self.blocks[:count]
        ends = np.cumsum([0, *(len(rows) for _, rows in chosen)])
        blocks = tuple((name, np.arange(ends[i], ends[i + 1])) for i, (name, _) in enumerate(chosen))
        part = self.only(np.concatenate([rows for _, rows in chosen]), (self.of, "first", count))
        return replace(part, blocks=blocks)


@dataclass(frozen=True)
class Tools:
    """What stages work with. `folder`: where trained adapters lie; None where nothing is kept on disk.

    `report` is told of the held-out items of a training and may raise to end it. `may`: stage -> what its parameters
    may be in this study; nothing where none is run.
    """

    scorer: CachedScorer
    progress: Progress | None = None
    folder: Path | None = None
    may: Mapping[str, May] = field(default_factory=dict)
    report: Callable[..., None] | None = None
    _memo: dict[str, OrderedDict[Hashable, Any]] = field(default_factory=dict)

    def once(self, what: str, key: Hashable | None, make: Callable[[], Any]) -> Any:
        """`make()`, or what it gave for this key before; with no key it is always made."""
        if key is None:
            return make()
        known = self._memo.setdefault(what, OrderedDict())
        if key not in known:
            known[key] = make()
            if len(known) > KEPT_OF.get(what, KEPT):
                known.popitem(last=False)
        known.move_to_end(key)
        return known[key]

    def histories(self, work: Work) -> Histories:
        """The questions with their ranked histories."""
        made: Histories = self.once("histories", work.of, lambda: Histories(self.scorer, work.dataset, self.progress))
        return made

    def embed(self, texts: Sequence[str]) -> Scores:
        """Embeddings of texts."""
        return self.scorer.embeddings(texts, self.progress)


def begin(dataset: Dataset, tools: Tools, of: Hashable | None = None) -> Work:
    """Questions to which nothing was done yet; with a name `of`, what is run for them is kept."""
    asking, users = Asking(), [q.user_id for q in dataset.questions]
    prompts, _ = asking.prompts(tools.scorer, dataset)
    spoken = asking.spoken(tools.scorer, dataset)
    named = of is not None and len(users) > 0
    blocks = [((of, "block", i), rows) for i, rows in enumerate(user_blocks(users, BLOCKS))] if named else []
    return Work(dataset, asking, tuple(prompts), tuple(spoken), of, blocks=tuple(blocks))


def scores_of(work: Work, tools: Tools) -> Scores:
    """Label scores [n, K] as the stages so far leave them; questions that no edit moves have the model's own bits."""
    if not len(work):
        return np.empty((0, len(work.spoken)), dtype=np.float32)
    found: Scores = tools.once("scores", work.key, lambda: _scores(work, tools))
    return found


def _scores(work: Work, tools: Tools) -> Scores:
    if work.own is not None:
        table, weight = work.own
        return table if weight == 1 else blended(scores_of(replace(work, own=None), tools), table, weight)
    touched = work.touched
    if not touched.any():
        return plain_scores(work, tools)
    if work.blocks:
        out = np.empty((len(work), len(work.spoken)), dtype=np.float32)
        for name, rows in work.blocks:
            out[rows] = scores_of(work.only(rows, name), tools)
        return out
    rows = np.arange(len(work)) if work.of is not None else np.flatnonzero(touched)
    out = np.empty((len(work), len(work.spoken)), dtype=np.float32)
    out[rows] = _edited(work.only(rows, work.of) if len(rows) < len(work) else work, tools)
    if not touched.all():
        out[~touched] = _plain_rows(work, np.flatnonzero(~touched), tools)
    if work.blend < 1:
        moved = np.flatnonzero(touched)
        out[moved] = blended(_plain_rows(work, moved, tools), out[moved], work.blend)
    return out


def plain_scores(work: Work, tools: Tools) -> Scores:
    """What the model says to these prompts without edits, [n, K]."""
    if work.parent is not None and work.parent[0].of is not None:
        parent, rows = work.parent
        alike = work.prompts == tuple(parent.prompts[row] for row in rows)
        if alike and (work.spoken, work.scale) == (parent.spoken, parent.scale):
            return plain_scores(parent, tools)[rows]
    key = None if work.of is None else (work.prompts, work.spoken, work.scale)
    parts = pairwise((0, *work.seams, len(work)))
    found: Scores = tools.once(
        "plain", key, lambda: np.concatenate([asked(work.prompts[begin:end], work, tools) for begin, end in parts])
    )
    return found


def asked(prompts: Sequence[str], work: Work, tools: Tools) -> Scores:
    """The model's own scores for prompts with the labels of a work; an encoder's at the work's scale, up to a constant
    a question."""
    return scaled(tools.scorer.label_logprobs(prompts, work.spoken, tools.progress), work)


def scaled(scores: Scores, work: Work) -> Scores:
    """An encoder's log-probabilities at the work's scale instead of the usual one, up to a constant a question."""
    return scores if work.scale == SCALE else scores * np.float32(work.scale / SCALE)


def _plain_rows(work: Work, rows: Rows, tools: Tools) -> Scores:
    if work.of is not None:
        return plain_scores(work, tools)[rows]
    return asked([work.prompts[row] for row in rows], work, tools)


def _edited(work: Work, tools: Tools) -> Scores:
    """One pass under the edits for every question."""

    def table(prompts: Sequence[str], edits: Sequence[Edit]) -> Scores:
        def run() -> tuple[Scores, list[Any]]:
            ran: tuple[Scores, list[Any]] = _fixed(prompts, edits, work, tools).pass_of(edits, tools.progress)
            return ran

        found, told = run() if work.of is None else tools.scorer.edited(prompts, work.spoken, edits, run)
        for edit, one in zip(edits, told, strict=True):
            edit.did(one)
        return found

    return scaled(_passes(work.prompts, work.edits, tools, (len(work.spoken),), table), work)


def _passes(
    prompts: Sequence[str],
    edits: Sequence[Edit],
    tools: Tools,
    shape: tuple[int, ...],
    run: Callable[[Sequence[str], Sequence[Edit]], Scores],
) -> Scores:
    """What is run of prompts, float32 [m, *shape], in batches that suit their edits."""
    from personalization.scoring.passes import shrinking

    out = np.empty((len(prompts), *shape), dtype=np.float32)
    for rows, own in separated(edits, len(prompts)):
        some = [prompts[row] for row in rows]
        out[rows] = shrinking(tools.scorer.backbone, partial(run, some, own))
    return out


def _fixed(prompts: Sequence[str], edits: Sequence[Edit], work: Work, tools: Tools) -> Any:
    """Prompts ready to be run under these edits; kept where the work has a name."""
    scorer = tools.scorer
    sharing = tuple(edit.sharing if isinstance(edit.sharing, str) else tuple(edit.sharing) for edit in edits)
    needs = (tuple(prompts), work.spoken, sharing, max(edit.prefix for edit in edits), scorer.backbone.smaller)
    key = None if work.of is None else needs
    return tools.once("fixed", key, lambda: scorer.backbone.fixed(prompts, work.spoken, edits, scorer.shelf))


def separated(edits: Sequence[Edit], n: int) -> list[tuple[Rows, list[Edit]]]:
    """Questions that may stand in one batch, each list with the edits for it."""
    found: list[tuple[Rows, list[Edit]]] = [(np.arange(n), [])]
    for edit in edits:
        split = []
        for rows, below in found:
            for own, part in edit.only(rows).parts() if len(found) > 1 else edit.parts():
                split.append((rows[own], [*(one.only(own) if len(own) < len(rows) else one for one in below), part]))
        found = split
    return found


def states_of(
    prompts: Sequence[str], owners: Rows, work: Work, tools: Tools, layers: Sequence[int], site: str = "block"
) -> Scores:
    """States of prompts' last tokens, [m, L, d], each under the edits of the question that it belongs to."""
    edits = [edit.only(owners) for edit in work.edits]
    if not any(edit.touched.any() for edit in edits):
        place = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        return tools.scorer.last_states(list(place), layers, tools.progress, site)[[place[p] for p in prompts]]
    backbone = tools.scorer.backbone

    def states(some: Sequence[str], own: Sequence[Edit]) -> Scores:
        found: Scores = backbone.fixed(some, work.spoken, own).last_states(layers, own, site)
        return found

    return _passes(prompts, edits, tools, (len(layers), backbone.width), states)


def embeddings_of(texts: Sequence[str], owners: Rows, work: Work, tools: Tools) -> Scores:
    """An encoder's embeddings [m, d] of texts, each under the edits of the question that it belongs to."""
    edits = [edit.only(owners) for edit in work.edits]
    if not any(edit.touched.any() for edit in edits):
        return tools.embed(texts)
    from personalization.scoring.passes import shrinking

    backbone = tools.scorer.backbone
    found: Scores = shrinking(backbone, lambda: backbone.fixed(texts, work.spoken, edits).embeddings(edits))
    return found


def blended(below: Scores, above: Scores, weight: float) -> Scores:
    """A mean of the log-probabilities over labels, weighing the upper's by `weight`; float32 [n, K]."""
    return np.asarray((1 - weight) * log_softmax(below) + weight * log_softmax(above), dtype=np.float32)
