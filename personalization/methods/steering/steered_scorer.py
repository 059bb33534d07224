"""Score tables of one list of questions under any edit, each for the cost of the layers above the first edited one.

The questions' batches are fixed, so a batch run again from stored states gives the bits of the full run. The states
that leave a layer are stored on disk when an edit first starts there. With scope `last` nothing before the end of a
prompt moves, so questions share their beginnings as in a plain pass; with scope `all` each has a row of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from personalization.backbones.causal import CausalBackbone
from personalization.errors import DataError
from personalization.files import sha256_of
from personalization.methods.steering.moves import Edit, EditedTokens, Firings, SteeringVectors, steered
from personalization.scoring.packed import MOST_NODES, Packed
from personalization.scoring.passes import next_batch
from personalization.scoring.products import fast_products
from personalization.scoring.resume import may_resume, output_of, parts_returned, resumed_after
from personalization.scoring.rows import Row, lay_out
from personalization.scoring.states import StoredStates
from personalization.scoring.store import key_of

BATCH_TOKENS = {"cpu": 1024, "cuda": 65536}
"""Tokens in a batch, by device type; fixed, so that states stored today fit the batches of tomorrow."""
KEPT_OPEN = 2
"""Layers of a scope whose stored states stay open: what is open takes disk space after its eviction, too."""
SCOPES = ("all", "last")
"""Which tokens are edited: all, or those from the prompt's last one on."""


class SteeredTable(NamedTuple):
    """`scores` float32 [n, K], which questions were steered, bool [n], and what the hooks did."""

    scores: NDArray[np.float32]
    steered: NDArray[np.bool_]
    firings: Firings


def joined(tables: Sequence[SteeredTable], blocks: Sequence[NDArray[np.int64]]) -> SteeredTable:
    """One table of tables whose questions are these rows of it."""
    n = sum(map(len, blocks))
    whole = SteeredTable(
        np.empty((n, tables[0].scores.shape[1]), dtype=np.float32), np.empty(n, dtype=np.bool_), Firings()
    )
    for table, rows in zip(tables, blocks, strict=True):
        whole.scores[rows], whole.steered[rows] = table.scores, table.steered
        whole.firings.add(table.firings)
    return whole


class Batches:
    """The fixed batches of a scope: rows, their layout, and the states that have been stored for them."""

    def __init__(self, route: Packed, tokens: int) -> None:
        self.route = route
        waiting = sorted(route.units, key=lambda unit: -unit.width)
        self.rows: list[Sequence[Row]] = []
        at = 0
        while at < len(waiting):
            self.rows.append(next_batch(waiting, at, tokens, False))
            at += len(self.rows[-1])
        self.layouts = [lay_out(rows, route.prompts, route.trunk, route.trees[0]) for rows in self.rows]
        self.prompts = [np.array([index for row in rows for index in row.prompts]) for rows in self.rows]
        self.stored: OrderedDict[int, StoredStates] = OrderedDict()

    def edited(self, number: int, users: NDArray[np.int64], gates: NDArray[np.floating], scope: str) -> EditedTokens:
        """The tokens of a batch that move, for users [n] and gates [n] of all prompts."""
        layout, prompts = self.layouts[number], self.prompts[number]
        if scope == "last":
            places = layout.places.shape[1] - 1
            rows, columns = np.repeat(layout.places[:, 0], places), layout.places[:, 1:].reshape(-1)
            owners = np.repeat(prompts, places)
        else:
            rows, columns = np.nonzero(layout.branches >= 0)
            owners = prompts[rows]
        return EditedTokens(layout.ids.shape[1], rows, columns, users[owners], gates[owners].astype(np.float32))


class SteeredScorer:
    """Questions of many users, ready to be scored under edits.

    `identity` (JSON-able): all else that the states depend on, above all the weights.
    """

    def __init__(
        self,
        backbone: CausalBackbone,
        prompts: Sequence[str],
        continuations: Sequence[str],
        folder: Path,
        identity: Mapping[str, Any] | str,
    ) -> None:
        heads, tails = backbone.encoder.encode(prompts, continuations)
        if len(set(tails)) != 1:
            raise DataError("steering needs labels whose tokens are the same behind every prompt; end prompts alike")
        self.model, self.folder = backbone.model, folder
        heads = [backbone.fit(head, max(map(len, tails[0]))) for head in heads]
        route = backbone.packed(heads, tails[0])
        if len(route.trees) > 1:
            raise DataError(f"steering takes labels of at most {MOST_NODES} tokens together")
        self.layers = backbone.layers
        self.parts = parts_returned(self.model, self.layers)
        self.tokens = BATCH_TOKENS.get(self.model.device.type, BATCH_TOKENS["cpu"])
        self._routes = {
            "last": lambda: route,
            "all": lambda: Packed(self.model, route.head, heads, tails[0], share=False),
        }
        self._batches: dict[str, Batches] = {}
        self._key = {
            "identity": identity,
            "code": sha256_of(Path(__file__)),
            "attention": self.model.config._attn_implementation,
            "prompts": list(prompts),
            "continuations": list(continuations),
            "batch_tokens": self.tokens,
        }

    def table(
        self,
        vectors: SteeringVectors,
        edit: Edit,
        users: NDArray[np.int64],
        gates: NDArray[np.floating],
        scope: str = "last",
        resume: bool = True,
    ) -> SteeredTable:
        """Scores under an edit. `users` int [n]: the vectors of each question; `gates` float [n]: 0 leaves one alone.

        `resume=False` runs the whole model; the result is the same.
        """
        batches = self.batches(scope)
        out = np.empty((len(users), len(batches.route.trees[0].lengths)), dtype=np.float32)
        total = Firings(dict.fromkeys(edit.layers, 0))
        after = min(edit.layers) - (edit.site == "mlp") if resume else -1
        states = self.states_after(after, scope) if after >= 0 and self._may_resume(batches, after) else None
        for number, prompts in enumerate(batches.prompts):
            tokens = batches.edited(number, users, gates, scope)
            with ExitStack() as stack:
                if states is not None:
                    given = states[number].to(self.model.device)
                    stack.enter_context(resumed_after(self.layers, after, given, self.parts))
                firings = stack.enter_context(steered(self.layers, vectors, edit, tokens))
                out[prompts] = self._scores(batches, number)
            total.add(firings)
        if silent := [str(layer) for layer, calls in total.calls.items() if calls < len(batches.prompts)]:
            raise DataError(f"the blocks {', '.join(silent)} of this model did not run in every batch; edit others")
        if not np.isfinite(out).all():
            raise DataError("a steered score is not finite; give smaller strengths, or another dtype")
        return SteeredTable(out, gates != 0, total)

    def batches(self, scope: str) -> Batches:
        """The batches of a scope; the trunk that they share is run at once, without steering."""
        if scope not in SCOPES:
            raise ValueError(f"scope must be one of {', '.join(SCOPES)}, but got {scope!r}")
        if scope not in self._batches:
            self._batches[scope] = Batches(self._routes[scope](), self.tokens)
            with self._running():
                self._batches[scope].route.prepare()
        return self._batches[scope]

    def states_after(self, layer: int, scope: str = "last") -> StoredStates:
        """What leaves a layer in every batch of a scope, without steering."""
        batches = self.batches(scope)
        if layer not in batches.stored:
            path = self.folder / f"{key_of({**self._key, 'after': layer, 'scope': scope})}.states"
            shapes = [(int(layout.ids.shape[0]), int(layout.ids.shape[1])) for layout in batches.layouts]
            width = self.model.config.get_text_config().hidden_size
            batches.stored[layer] = StoredStates(
                path, shapes, width, self.model.dtype, lambda: self._run(batches, layer)
            )
            if len(batches.stored) > KEPT_OPEN:
                batches.stored.popitem(last=False)
        batches.stored.move_to_end(layer)
        return batches.stored[layer]

    def last_states(self, layer: int, keep: bool = True) -> NDArray[np.float32]:
        """The state of each prompt's last token where it leaves a layer, float32 [n, d]; `keep`: store the pass."""
        batches = self.batches("last")
        stored = self.states_after(layer) if keep else None
        passes = self._run(batches, layer) if stored is None else (stored[i] for i in range(len(batches.rows)))
        out = np.empty((len(batches.route.prompts), self.model.config.get_text_config().hidden_size), dtype=np.float32)
        for number, states in enumerate(passes):
            places = batches.layouts[number].places
            out[batches.prompts[number]] = states[places[:, 0], places[:, 1]].float().cpu().numpy()
        return out

    def _may_resume(self, batches: Batches, after: int) -> bool:
        with self._running():
            return may_resume(self.layers, after, self.parts, lambda: batches.route.score(batches.rows[0]))

    def _run(self, batches: Batches, layer: int) -> Iterator[Tensor]:
        for number in range(len(batches.rows)):
            yield output_of(self.layers[layer], partial(self._scores, batches, number))

    def _scores(self, batches: Batches, number: int) -> NDArray[np.float32]:
        with self._running():
            scores: NDArray[np.float32] = batches.route.score(batches.rows[number]).numpy()
            return scores

    @contextmanager
    def _running(self) -> Iterator[None]:
        with torch.inference_mode(), fast_products(self.model.device.type):
            yield
