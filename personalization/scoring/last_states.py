"""Reading the state of each prompt's last token, at one site of some layers, in the batches of a scoring pass."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from personalization.scoring.packed import Packed
from personalization.scoring.resume import captured_output
from personalization.scoring.rows import Row, lay_out


class LastStates:
    """A route that runs packed rows and gives what leaves each of L modules in the place of scores."""

    same_width = False

    def __init__(self, route: Packed, modules: Sequence[nn.Module]) -> None:
        self.model, self.units = route.model, route.units
        self.route, self.modules = route, modules

    def score(self, rows: Sequence[Row]) -> Tensor:
        """The states of the rows' prompts, float32 [prompts, L * d]."""
        layout = lay_out(rows, self.route.prompts, self.route.trunk, self.route.trees[0])
        with ExitStack() as stack:
            seen = [stack.enter_context(captured_output(module)) for module in self.modules]
            self.route.read([layout], len(layout.places))
        shape, places = layout.ids.shape, layout.places
        whole = [runs[-1].view(*shape, -1) for runs in seen]  # an MLP may join rows and places
        states = torch.stack([states[places[:, 0], places[:, 1]] for states in whole], dim=1)
        return states.float().cpu().flatten(1)
