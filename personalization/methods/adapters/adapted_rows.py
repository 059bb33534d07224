"""Prompts of several users, ready to be run with each one's adapter, again and again, above the frozen layers.

A row holds prompts of one user that begin alike, with all candidates behind each, so a beginning is run once a row,
with its gradient. What leaves the last layer below the adapters depends neither on them nor on who shares one: it is
computed once, stored, and every epoch and every trial starts from it. Only the places where a label is read reach the
LM head. Batches are fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from personalization.backbones.causal import CausalBackbone
from personalization.errors import DataError
from personalization.files import sha256_of
from personalization.methods.adapters.prefix import Adapters
from personalization.scoring.packed import LONGEST_ROW, MOST_NODES, Packed
from personalization.scoring.passes import next_batch
from personalization.scoring.products import fast_products
from personalization.scoring.resume import captured_output, may_resume, output_of, parts_returned, resumed_after
from personalization.scoring.rows import Row, Tokens, cut_rows, lay_out
from personalization.scoring.states import StoredStates
from personalization.scoring.store import key_of

BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}
"""Tokens in a batch, by device type; fixed, so that stored states fit the batches of later runs."""


class AdaptedRows:
    """Prompts [n] of users [n] with the same candidates, and the adapter of each, -1 for none.

    `first`: the lowest adapted layer; `prefix`: tokens that an adapter puts in front. All prompts of a user have one
    adapter.
    """

    def __init__(
        self,
        backbone: CausalBackbone,
        prompts: Sequence[str],
        users: Sequence[str],
        groups: NDArray[np.int64],
        continuations: Sequence[str],
        first: int,
        folder: Path,
        identity: Mapping[str, Any] | str,
        prefix: int = 0,
    ) -> None:
        heads, tails = backbone.encoder.encode(prompts, continuations)
        if len(set(tails)) != 1:
            raise DataError("adapters need labels whose tokens are the same behind every prompt; end prompts alike")
        heads = [backbone.fit(head, prefix + max(map(len, tails[0]))) for head in heads]
        self.model, self.groups, self.first, self.folder = backbone.model, groups, first, folder
        route = backbone.packed(heads, tails[0])
        if len(route.trees) > 1:
            raise DataError(f"adapters take labels of at most {MOST_NODES} tokens together")
        units = self._units(heads, users, len(route.trees[0].tokens))
        self.route = Packed(self.model, route.head, heads, tails[0], units=units)
        self.layers = backbone.layers
        self.parts = parts_returned(self.model, self.layers)
        tokens = BATCH_TOKENS.get(self.model.device.type, BATCH_TOKENS["cpu"])
        waiting = sorted(units, key=lambda unit: -unit.width)
        self.rows: list[Sequence[Row]] = []
        while sum(map(len, self.rows)) < len(waiting):
            self.rows.append(next_batch(waiting, sum(map(len, self.rows)), tokens, False))
        self.members = [np.array([index for row in rows for index in row.prompts]) for rows in self.rows]
        self.key = key_of({
            "identity": identity, "code": sha256_of(Path(__file__)), "prompts": list(prompts),
            "continuations": list(continuations), "users": list(users), "tokens": tokens, "first": first,
            "attention": self.model.config._attn_implementation,
        })  # fmt: skip
        self._states: StoredStates | None = None
        if first and self.rows:
            with fast_products(self.model.device.type):
                resumable = may_resume(self.layers, first - 1, self.parts, partial(self.route.score, self.rows[0]))
            self.first = first if resumable else 0

    def _units(self, heads: Sequence[Tokens], users: Sequence[str], nodes: int) -> list[Row]:
        members: dict[str, list[int]] = {}
        for index, user in enumerate(users):
            members.setdefault(user, []).append(index)
        units: list[Row] = []
        width = self.model.config.get_text_config().hidden_size
        for own in members.values():
            rows = cut_rows([heads[i] for i in own], 0, nodes, width, LONGEST_ROW)
            units += [Row(tuple(own[i] for i in row.prompts), row.stem, row.width) for row in rows]
        return units

    @property
    def batches(self) -> int:
        """How many batches there are."""
        return len(self.rows)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each continuation, [K]."""
        out = np.empty(len(self.route.columns[0]), dtype=np.int64)
        out[self.route.columns[0]] = self.route.trees[0].lengths
        return out

    def scores(self, number: int, lora: Adapters | None, dropout: float = 0.0) -> Tensor:
        """Log-probabilities of the prompts `members[number]`, float32 [b, K]; with gradients where they are on."""
        rows = self.rows[number]
        with ExitStack() as stack:
            stack.enter_context(fast_products(self.model.device.type))
            if self.first:
                given = self.states[number].to(self.model.device)
                stack.enter_context(resumed_after(self.layers, self.first - 1, given, self.parts))
            past = None
            if lora is not None:
                groups = torch.from_numpy(self.groups[[row.prompts[0] for row in rows]]).to(self.model.device)
                past = stack.enter_context(lora.applied(groups, dropout))
            return self.route.score(rows, past)

    def scores_and_cosines(self, number: int, lora: Adapters | None, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
        """Scores of a batch, and the cosine of each prompt's last state with each label's mean output embedding."""
        if self.first:
            self.states  # noqa: B018  (stored before anything is captured)
        with captured_output(self.model.base_model) as seen:
            scores = self.scores(number, lora, dropout)
        layout = lay_out(self.rows[number], self.route.prompts, 0, self.route.trees[0])
        states = seen[-1][layout.places[:, 0], layout.places[:, 1]].float()
        cosines = nn.functional.cosine_similarity(states[:, None], self.label_embeddings[None], dim=-1)
        return scores, cosines.to(scores.device)

    @cached_property
    def label_embeddings(self) -> Tensor:
        """The mean of the LM head's rows for each label's tokens, float32 [K, d]."""
        tree, head = self.route.trees[0], self.model.get_output_embeddings().weight.detach()
        means = [head[tree.candidate(k)].float().mean(dim=0) for k in range(len(tree.lengths))]
        return torch.stack(means)[np.argsort(self.route.columns[0])]

    def table(self, lora: Adapters | None, progress: Callable[[int, int], None] | None = None) -> NDArray[np.float32]:
        """Scores of all prompts, float32 [n, K]."""
        return table_of(self, lora, progress)

    @property
    def states(self) -> StoredStates:
        """What leaves the layer below the first adapted one, in every batch."""
        if self._states is None:
            layouts = [lay_out(rows, self.route.prompts, 0, self.route.trees[0]) for rows in self.rows]
            shapes = [(int(layout.ids.shape[0]), int(layout.ids.shape[1])) for layout in layouts]
            width = self.model.config.get_text_config().hidden_size
            path = self.folder / f"{self.key}.states"
            self._states = StoredStates(path, shapes, width, self.model.dtype, self._run)
        return self._states

    def _run(self) -> Iterator[Tensor]:
        for rows in self.rows:
            with torch.inference_mode(), fast_products(self.model.device.type):
                states = output_of(self.layers[self.first - 1], partial(self.route.score, rows))
            yield states


def table_of(rows: Any, lora: Adapters | None, progress: Callable[[int, int], None] | None) -> NDArray[np.float32]:
    """Scores of all prompts, or texts, of rows, float32 [n, K]; DataError where one is not finite."""
    out = np.empty((len(rows.groups), len(rows.lengths)), dtype=np.float32)
    with torch.inference_mode():
        for number, members in enumerate(rows.members):
            out[members] = rows.scores(number, lora).numpy()
            if progress is not None:
                progress(number + 1, len(rows.members))
    if not np.isfinite(out).all():
        raise DataError("a score under the adapter is not finite; give a smaller learning rate, or another dtype")
    return out
