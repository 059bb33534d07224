"""Reading the state of each prompt's last token, at one site of every layer, in the batches of a scoring pass."""

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
    """A route that runs packed rows and keeps what leaves each of L modules: fills `out` float32 [n, L, d]."""

    same_width = False

    def __init__(self, route: Packed, modules: Sequence[nn.Module], out: NDArray[np.float32]) -> None:
        self.model, self.units = route.model, route.units
        self.route, self.modules, self.out = route, modules, out

    def score(self, rows: Sequence[Row]) -> Tensor:
        """The scores of the packed route."""
        with ExitStack() as stack:
            seen = [stack.enter_context(captured_output(module)) for module in self.modules]
            scores = self.route.score(rows)
        layout = lay_out(rows, self.route.prompts, self.route.trunk, self.route.trees[0])
        shape, places = layout.ids.shape, layout.places
        whole = [runs[-1].view(*shape, -1) for runs in seen]  # an MLP may join rows and places
        states = torch.stack([states[places[:, 0], places[:, 1]] for states in whole], dim=1)
        self.out[[index for row in rows for index in row.prompts]] = states.float().cpu().numpy()
        return scores
