"""Score tables of one list of questions under any edit, each for the cost of the layers above the first edited one.

The questions' batches are fixed, so a batch run again from stored states gives the bits of the full run. The states
that leave a layer are stored on disk when an edit first starts there. Each question has a row of its own and shares no
token with another one, because with scope `all` its prompt moves along its own user's direction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from personalization.backbones.causal import CausalBackbone
from personalization.errors import DataError, UnavailableError
from personalization.methods.steering import Edit, EditedTokens, Firings, SteeringVectors, steered
from personalization.scoring.packed import Packed
from personalization.scoring.passes import next_batch
from personalization.scoring.products import fast_products
from personalization.scoring.resume import captured_output, decoder_layers, resumed_after, returns_tuples
from personalization.scoring.rows import lay_out
from personalization.scoring.states import StoredStates
from personalization.scoring.store import key_of

BATCH_TOKENS = {"cpu": 1024, "cuda": 65536}
"""Tokens in a batch, by device type; fixed, so that states stored today fit the batches of tomorrow."""
SCOPES = ("all", "last")
"""Which tokens are edited: all, or those from the prompt's last one on."""


class SteeredTable(NamedTuple):
    """`scores` float32 [n, K], and what the hooks did."""

    scores: NDArray[np.float32]
    firings: Firings


class SteeredScorer:
    """Questions of many users, ready to be scored under edits. `model_key` names the model's weights."""

    def __init__(
        self,
        backbone: CausalBackbone,
        prompts: Sequence[str],
        continuations: Sequence[str],
        folder: Path,
        model_key: str,
        layers: str | None = None,
    ) -> None:
        heads, tails = backbone.encoder.encode(prompts, continuations)
        if len(set(tails)) != 1:
            raise DataError("steering needs labels whose tokens are the same behind every prompt; end prompts alike")
        self.model, self.folder = backbone.model, folder
        heads = [backbone.fit(head, max(map(len, tails[0]))) for head in heads]
        ((_, route),) = backbone.router.routes(heads, tails[0])
        if not isinstance(route, Packed) or len(route.trees) > 1:
            raise UnavailableError(f"steering needs packed rows, which {self.model.config.model_type} cannot take")
        self.route = Packed(self.model, route.head, heads, tails[0], share=False)
        self.layers = decoder_layers(self.model, layers)
        self.tuples = returns_tuples(self.model, self.layers)
        waiting = sorted(self.route.units, key=lambda unit: -unit.width)
        tokens = BATCH_TOKENS.get(self.model.device.type, BATCH_TOKENS["cpu"])
        self.batches, at = [], 0
        while at < len(waiting):
            self.batches.append(next_batch(waiting, at, tokens, False))
            at += len(self.batches[-1])
        self.layouts = [lay_out(batch, heads, 0, self.route.trees[0]) for batch in self.batches]
        self._key = {"model": model_key, "dtype": str(self.model.dtype), "device": self.model.device.type,
                     "attention": self.model.config._attn_implementation, "prompts": list(prompts),
                     "continuations": list(continuations), "batch_tokens": tokens}  # fmt: skip
        self._stored: dict[int, StoredStates] = {}

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
        out = np.empty((len(users), len(self.route.trees[0].lengths)), dtype=np.float32)
        total = Firings(dict.fromkeys(edit.layers, 0))
        after = min(edit.layers) - (edit.site == "mlp") if resume else -1
        states = self.states_after(after) if after >= 0 else None
        for number, batch in enumerate(self.batches):
            rows = np.array([unit.prompts[0] for unit in batch])
            tokens = self._tokens(number, users[rows], gates[rows], scope)
            with ExitStack() as stack:
                if states is not None:
                    given = states[number].to(self.model.device)
                    stack.enter_context(resumed_after(self.layers, after, given, self.tuples))
                firings = stack.enter_context(steered(self.layers, vectors, edit, tokens))
                out[rows] = self._scores(number)
            for layer, calls in firings.calls.items():
                total.calls[layer] += calls
            total.tokens += firings.tokens
            total.relative += firings.relative
        return SteeredTable(out, total)

    def states_after(self, layer: int) -> StoredStates:
        """What leaves a layer in every batch, without steering."""
        if layer not in self._stored:
            path = self.folder / f"{key_of({**self._key, 'after': layer})}.states"
            shapes = [(int(layout.ids.shape[0]), int(layout.ids.shape[1])) for layout in self.layouts]
            width = self.model.config.get_text_config().hidden_size
            self._stored[layer] = StoredStates(path, shapes, width, self.model.dtype, lambda: self._run(layer))
        return self._stored[layer]

    def last_states(self, layer: int) -> NDArray[np.float32]:
        """The state of each prompt's last token where it leaves a layer, float32 [n, d]."""
        states = self.states_after(layer)
        out = np.empty((len(self.route.prompts), states.width), dtype=np.float32)
        for number, batch in enumerate(self.batches):
            places = torch.from_numpy(self.layouts[number].places)
            out[[unit.prompts[0] for unit in batch]] = states[number][places[:, 0], places[:, 1]].float().numpy()
        return out

    def _run(self, layer: int) -> Iterator[Tensor]:
        for number in range(len(self.batches)):
            with captured_output(self.layers[layer]) as seen:
                self._scores(number)
            yield seen[0]

    def _scores(self, number: int) -> NDArray[np.float32]:
        with torch.inference_mode(), fast_products(self.model.device.type):
            scores: NDArray[np.float32] = self.route.score(self.batches[number]).numpy()
            return scores

    def _tokens(self, number: int, users: NDArray[np.int64], gates: NDArray[np.floating], scope: str) -> EditedTokens:
        layout = self.layouts[number]
        if scope == "last":
            rows = np.repeat(layout.places[:, 0], layout.places.shape[1] - 1)
            columns = layout.places[:, 1:].reshape(-1)
        elif scope == "all":
            rows, columns = np.nonzero(layout.branches >= 0)
        else:
            raise ValueError(f"scope must be one of {', '.join(SCOPES)}, but got {scope!r}")
        return EditedTokens(layout.ids.shape[1], rows, columns, users[rows], gates[rows].astype(np.float32))
