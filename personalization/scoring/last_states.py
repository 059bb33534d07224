"""Reading the hidden state of each prompt's last token, at every layer, in the batches of a scoring pass."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from personalization.scoring.packed import Packed
from personalization.scoring.resume import captured_output
from personalization.scoring.rows import Row, lay_out


class LastStates:
    """A route that runs packed rows and keeps what leaves each layer: fills `out` float32 [n, L, d]."""

    same_width = False

    def __init__(self, route: Packed, layers: nn.ModuleList, out: NDArray[np.float32]) -> None:
        self.model, self.units = route.model, route.units
        self.route, self.layers, self.out = route, layers, out

    def score(self, rows: Sequence[Row]) -> Tensor:
        """The scores of the packed route."""
        with ExitStack() as stack:
            seen = [stack.enter_context(captured_output(layer)) for layer in self.layers]
            scores = self.route.score(rows)
        places = lay_out(rows, self.route.prompts, self.route.trunk, self.route.trees[0]).places
        states = torch.stack([runs[-1][places[:, 0], places[:, 1]] for runs in seen], dim=1)
        self.out[[index for row in rows for index in row.prompts]] = states.float().cpu().numpy()
        return scores
