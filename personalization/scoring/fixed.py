"""Prompts ready to be run under any edit, again and again, each time for the cost of the layers above the lowest edit.

Batches are fixed, so a batch that is run again from stored states gives the bits of the full run. What leaves the last
layer below an edit is computed once and stored on disk, where it fits (`states`); with several edits, what leaves the
last layer below the uppermost, under the others. Where an edit allows it, prompts share their beginnings: all of them,
or those of one user. `FixedTexts` are an encoder's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from personalization.errors import DataError
from personalization.files import sha256_of
from personalization.scoring.edits import Batch, Edit, Sharing, Shelf
from personalization.scoring.packed import LONGEST_ROW, MOST_NODES, Packed
from personalization.scoring.passes import next_batch
from personalization.scoring.products import fast_products
from personalization.scoring.resume import (
    captured_output,
    may_resume,
    output_of,
    parts_returned,
    resumed_after,
    site_of,
)
from personalization.scoring.rows import Layout, Row, Tokens, aligned, cut_rows, lay_out
from personalization.scoring.states import StoredStates, fits
from personalization.scoring.store import Progress, key_of

BATCH_TOKENS = {"cpu": 1024, "cuda": 65536}
"""Tokens in a batch, by device type; fixed, so that states stored today fit the batches of tomorrow."""
OWN_TOKENS = {"cpu": 2048, "cuda": 65536}
"""The same where rows are of one user each."""
BATCH_TEXTS = {"cpu": 16, "cuda": 256}
"""Texts in a batch of an encoder."""
KEPT_OPEN = 2
"""Layers whose stored states stay open: what is open takes disk space after its eviction, too."""


@cache
def _code() -> str:
    room = Path(__file__).parent
    return sha256_of(Path(__file__)) + sha256_of(room / "fixed_texts.py")


class Fixed(ABC):
    """What rows and texts have in common. A subclass says what a batch is and runs one.

    `members`: the prompts of each batch, in the order of its scores; `shelf`: None where nothing is kept.
    """

    members: list[NDArray[np.int64]]
    _depends: dict[str, Any]

    def __init__(self, backbone: Any, shelf: Shelf | None) -> None:
        self.backbone, self.model, self.layers, self.shelf = backbone, backbone.model, backbone.layers, shelf
        self.parts = parts_returned(self.model, self.layers)
        self._stored: OrderedDict[tuple[Any, ...], StoredStates | None] = OrderedDict()

    @cached_property
    def key(self) -> str:
        """What the batches depend on, besides the model."""
        return key_of({"code": _code(), **self._depends})

    @abstractmethod
    def batch(self, number: int) -> Batch:
        """What an edit is told of a batch."""

    @abstractmethod
    def shape(self, number: int) -> tuple[int, int]:
        """(rows, columns) of a batch."""

    @abstractmethod
    def run(self, number: int, past: Any = None) -> Tensor:
        """One forward pass of a batch behind these keys and values: log-probabilities float32 [b, K]."""

    @property
    @abstractmethod
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each label, [K]."""

    @property
    def batches(self) -> int:
        """How many batches there are."""
        return len(self.members)

    @abstractmethod
    def prepare(self) -> None:
        """Run what all batches share now, and not within the first."""

    def scores(self, number: int, edits: Sequence[Edit] = ()) -> Tensor:
        """Log-probabilities of the prompts `members[number]`, float32 [b, K]; with gradients where they are on."""
        return self._under(edits, number, lambda past: self.run(number, past))

    def _under(self, edits: Sequence[Edit], number: int, run: Callable[[Any], Tensor]) -> Tensor:
        """`run(keys and values)` under edits, from stored states where there are any."""
        self._ready()
        stored = self._resumable(edits)
        batch, past = self.batch(number), None
        with ExitStack() as stack:
            stack.enter_context(fast_products(self.model.device.type))
            if stored is not None:
                layer, states = stored
                given = states[number].to(self.model.device)
                stack.enter_context(resumed_after(self.layers, layer, given, self.parts))
            for edit in edits:
                found = stack.enter_context(edit.applied(batch))
                past = past if found is None else found
            return run(past)

    def table(self, edits: Sequence[Edit] = (), progress: Progress | None = None) -> NDArray[np.float32]:
        """Scores of all prompts under edits, float32 [n, K], which count what they did."""
        out, told = self.pass_of(edits, progress)
        for edit, one in zip(edits, told, strict=True):
            edit.did(one)
        return out

    def pass_of(
        self, edits: Sequence[Edit] = (), progress: Progress | None = None
    ) -> tuple[NDArray[np.float32], list[Any]]:
        """(scores of all prompts under edits, float32 [n, K], what each edit did); DataError where one is not
        finite."""
        self._prepare(edits)
        out = np.empty((sum(map(len, self.members)), len(self.lengths)), dtype=np.float32)
        with torch.inference_mode():
            for number, members in enumerate(self.members):
                out[members] = self.scores(number, edits).numpy()
                if progress is not None:
                    progress(number + 1, self.batches)
        told = [edit.ran(self.batches) for edit in edits]
        if not np.isfinite(out).all():
            raise DataError(
                "a score is not finite under what was done to the model; give smaller strengths, a lower learning "
                "rate, or another dtype"
            )
        return out, told

    def _prepare(self, edits: Sequence[Edit]) -> None:
        """Before a pass: the shared beginning, and stored states."""
        self._ready()
        self._resumable(edits)

    def _ready(self) -> None:
        """What all batches share is of the model without edits."""
        with torch.inference_mode(), fast_products(self.model.device.type):
            self.prepare()

    def _resumable(self, edits: Sequence[Edit]) -> tuple[int, StoredStates] | None:
        """(a layer, what leaves it) where a pass under these edits may start; None: at the beginning."""
        if not edits or self.shelf is None or not self.members:
            return None
        after = edits[-1].after
        below = tuple(edit for edit in edits[:-1] if edit.after < after)
        resumes = after >= 0 and may_resume(self.model, self.layers, after, self.parts)
        states = self.states(after, below) if resumes else None
        return None if states is None else (after, states)

    def states(self, layer: int, edits: Sequence[Edit] = ()) -> StoredStates | None:
        """What leaves a layer in every batch, under edits below it; None where there is no room to store it."""
        assert self.shelf is not None
        name = (layer, *(edit.key for edit in edits))
        if name not in self._stored:
            key = key_of({"rows": self.key, "identity": self.shelf.identity, "states": name})
            shapes = [self.shape(number) for number in range(self.batches)]
            given = (self.shelf.folder / f"{key}.states", shapes, self.backbone.width, self.model.dtype)
            fill = partial(self._run_to, layer, edits)
            self._stored[name] = StoredStates(*given, fill) if fits(*given) else None
            if len(self._stored) > KEPT_OPEN:
                self._stored.popitem(last=False)
        self._stored.move_to_end(name)
        return self._stored[name]

    def _run_to(self, layer: int, edits: Sequence[Edit]) -> Iterator[Tensor]:
        """What leaves a layer in every batch; the pass ends there."""
        for number in range(self.batches):
            with torch.inference_mode():
                states = self._under(
                    edits, number, lambda past, n=number: output_of(self.layers[layer], lambda: self.run(n, past))
                )
            yield states


class FixedRows(Fixed):
    """Prompts [n] of a causal model with the same candidates. `prefix`: tokens that an edit puts in front."""

    def __init__(
        self,
        backbone: Any,
        prompts: Sequence[str],
        continuations: Sequence[str],
        sharing: Sharing = "any",
        shelf: Shelf | None = None,
        prefix: int = 0,
    ) -> None:
        super().__init__(backbone, shelf)
        heads, tails = backbone.encoder.encode(prompts, continuations)
        if len(set(tails)) > 1:
            raise DataError("labels need the same tokens behind every prompt here; end prompts alike")
        heads = [backbone.fit(head, prefix + max(map(len, tails[0]))) for head in heads]
        self.route = self._route(heads, tails[0], sharing)
        sizes = OWN_TOKENS if self._owned(sharing) else BATCH_TOKENS
        tokens = max(1, sizes.get(self.model.device.type, sizes["cpu"]) // backbone.smaller)
        waiting = sorted(self.route.units, key=lambda unit: -unit.width)
        self.rows: list[Sequence[Row]] = []
        self._laid: tuple[int, Layout] | None = None
        at = 0
        while at < len(waiting):
            self.rows.append(next_batch(waiting, at, tokens, False))
            at += len(self.rows[-1])
        self.members = [np.array([index for row in rows for index in row.prompts]) for rows in self.rows]
        self._depends = {
            "prompts": prompts, "continuations": continuations, "sharing": sharing, "tokens": tokens,
            "attention": self.model.config._attn_implementation,
        }  # fmt: skip

    @staticmethod
    def _owned(sharing: Sharing) -> bool:
        return not isinstance(sharing, str)

    def _route(self, heads: Sequence[Tokens], candidates: Any, sharing: Sharing) -> Packed:
        route: Packed = self.backbone.packed(heads, candidates)
        if len(route.trees) > 1:
            raise DataError(f"edits of a forward pass take labels of at most {MOST_NODES} tokens together")
        if sharing == "any":
            return route
        if sharing == "none":
            return Packed(self.model, route.head, heads, candidates, share=False)
        units = self._units(heads, sharing, len(route.trees[0].tokens))
        return Packed(self.model, route.head, heads, candidates, units=units)

    def _units(self, heads: Sequence[Tokens], owners: Sequence[Hashable], nodes: int) -> list[Row]:
        members: dict[Hashable, list[int]] = {}
        for index, owner in enumerate(owners):
            members.setdefault(owner, []).append(index)
        units: list[Row] = []
        for own in members.values():
            rows = cut_rows([heads[i] for i in own], 0, nodes, self.backbone.width, LONGEST_ROW)
            units += [row.named(own) for row in rows]
        return units

    def batch(self, number: int) -> Batch:
        """Prompts, first prompts of the rows, and the layout."""
        leaders = np.array([row.prompts[0] for row in self.rows[number]])
        return Batch(self.members[number], leaders, self.layout(number))

    def layout(self, number: int) -> Layout:
        """Where the tokens of a batch stand; of the latest one it is kept."""
        if self._laid is None or self._laid[0] != number:
            route = self.route
            self._laid = number, lay_out(self.rows[number], route.prompts, route.trunk, route.trees[0])
        return self._laid[1]

    def shape(self, number: int) -> tuple[int, int]:
        """Of the token ids."""
        return len(self.rows[number]), aligned(max(row.width for row in self.rows[number]))

    def run(self, number: int, past: Any = None) -> Tensor:
        """One forward pass of a batch."""
        return self.route.read([self.layout(number)], len(self.members[number]), past)

    def prepare(self) -> None:
        """Run the trunk."""
        self.route.prepare()

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each continuation, [K]."""
        out = np.empty(len(self.route.columns[0]), dtype=np.int64)
        out[self.route.columns[0]] = self.route.trees[0].lengths
        return out

    def scores_and_cosines(self, number: int, edits: Sequence[Edit] = ()) -> tuple[Tensor, Tensor]:
        """Scores of a batch, and the cosine of each prompt's last state with each label's mean output embedding."""
        self._resumable(edits)  # what is stored is run before anything is captured
        with captured_output(self.model.base_model) as seen:
            scores = self.scores(number, edits)
        places = self.layout(number).places
        states = seen[-1][places[:, 0], places[:, 1]].float()
        cosines = nn.functional.cosine_similarity(states[:, None], self.label_embeddings[None], dim=-1)
        return scores, cosines.to(scores.device)

    @cached_property
    def label_embeddings(self) -> Tensor:
        """The mean of the LM head's rows for each label's tokens, float32 [K, d]."""
        tree, head = self.route.trees[0], self.model.get_output_embeddings().weight.detach()
        means = [head[tree.candidate(k)].float().mean(dim=0) for k in range(len(tree.lengths))]
        return torch.stack(means)[np.argsort(self.route.columns[0])]

    def last_states(
        self, layers: Sequence[int], edits: Sequence[Edit] = (), site: str = "block"
    ) -> NDArray[np.float32]:
        """The state of each prompt's last token where it leaves these layers, or their MLPs, float32 [n, L, d]."""
        self._prepare(edits)
        out = np.empty((len(self.route.prompts), len(layers), self.backbone.width), dtype=np.float32)
        modules = [site_of(self.layers[layer], site) for layer in layers]
        for number, members in enumerate(self.members):
            with torch.inference_mode(), ExitStack() as stack:
                seen = [stack.enter_context(captured_output(module)) for module in modules]
                self.scores(number, edits)
            layout = self.layout(number)
            for place, runs in enumerate(seen):
                whole = runs[-1].view(*layout.ids.shape, -1)  # an MLP may join rows and places
                out[members, place] = whole[layout.places[:, 0], layout.places[:, 1]].float().cpu().numpy()
        return out
