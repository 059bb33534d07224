"""A pass over the data: batches of like-sized rows, filled to a token budget that the pass measures as it goes.

The budget starts small and doubles while larger batches are faster by `GAIN`; then the fastest is kept. Larger is not
always faster: on a CPU a batch that leaves the cache loses a fifth, and rows of more widths are padded more. A batch
that does not fit in memory is halved, and so is the budget from then on.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from personalization.errors import DataError
from personalization.scoring.products import fast_products
from personalization.scoring.routes import Route
from personalization.scoring.rows import Row
from personalization.scoring.store import Keep, Progress

log = logging.getLogger(__name__)

T = TypeVar("T")

START = {"cpu": 256, "cuda": 8192}
"""Padded tokens in the first batch, by device type."""
LARGEST = {"cpu": 8192, "cuda": 1 << 20}
GAIN = 1.02
HINT = "try another dtype (bfloat16 or float32), or look for damaged weights"
BATCH_COST = 0.04
"""What a batch costs by itself, as a share of a full one."""
SMALLEST = 1024
"""By how much fixed batches may be divided at most."""
SAMPLES = 2
"""Batches timed at each size; the faster one counts."""


class TokenBudget:
    """How many padded tokens a batch may have on a device. `settled` once larger batches are known to be no faster."""

    def __init__(self, device: str = "cpu") -> None:
        self.tokens = START.get(device, START["cpu"])
        self.largest = LARGEST.get(device, LARGEST["cpu"])
        self.settled = False
        self._rates: dict[int, list[float]] = {}

    def observe(self, tokens: int, seconds: float) -> None:
        """Note a batch of so many tokens without padding that ran. Batches that fill less than half of the budget say
        nothing about it."""
        if self.settled or 2 * tokens < self.tokens:
            return
        rates = self._rates.setdefault(self.tokens, [])
        rates.append(tokens / seconds)
        if len(rates) < SAMPLES:
            return
        best = max(self._rates, key=lambda size: max(self._rates[size]))
        before = max((max(r) for size, r in self._rates.items() if size < self.tokens), default=0.0)
        if max(rates) < GAIN * before or 2 * self.tokens > self.largest:
            self.tokens, self.settled = best, True
        else:
            self.tokens *= 2

    def halve(self, tokens: int) -> None:
        """A batch of this many tokens did not fit."""
        self.tokens, self.settled = max(1, tokens // 2), True


def score_all(
    route: Route,
    known: NDArray[np.float32],
    budget: TokenBudget,
    keep: Keep | None = None,
    progress: Progress | None = None,
) -> None:
    """Fill the rows of `known` [n, K] that are NaN, widest units first.

    `keep(rows, scores)` is called after each batch, before the next one starts. Raises DataError for a score that is
    not finite.
    """
    done = int((~np.isnan(known).any(axis=1)).sum())
    waiting = [unit for unit in route.units if np.isnan(known[list(unit.prompts)]).any()]
    waiting.sort(key=lambda unit: -unit.width)
    at = 0
    while at < len(waiting):
        batch = next_batch(waiting, at, budget.tokens, route.same_width)
        tokens = len(batch) * batch[0].width
        started = time.perf_counter()
        scores = _attempt(route, batch)
        if scores is None:
            budget.halve(tokens)
            continue
        budget.observe(sum(unit.width for unit in batch), time.perf_counter() - started)
        rows = np.array([index for unit in batch for index in unit.prompts])
        if not np.isfinite(scores).all():
            dtype = str(route.model.dtype).removeprefix("torch.")
            raise DataError(f"the model gives a label the score {scores[~np.isfinite(scores)][0]} in {dtype}; {HINT}")
        known[rows] = scores
        if keep is not None:
            keep(rows, scores)
        at += len(batch)
        done += len(rows)
        if progress is not None:
            progress(done, len(known))


def next_batch(waiting: Sequence[Row], at: int, tokens: int, same_width: bool) -> Sequence[Row]:
    """The units from `at` on that fit into so many padded tokens, at least one; fewer than fit where that spares more
    padding than a batch costs by itself."""
    width, most = waiting[at].width, max(1, tokens // waiting[at].width)
    widths = np.array([unit.width for unit in waiting[at : at + most]])
    if same_width:
        return waiting[at : at + int((widths == width).sum())]
    fed = width * np.arange(1, len(widths) + 1) + BATCH_COST * tokens
    return waiting[at : at + 1 + int(np.argmin(fed / widths.cumsum()))]


def _attempt(route: Route, batch: Sequence[Row]) -> NDArray[np.float32] | None:
    """The scores of a batch, or None where it does not fit in memory and can be made smaller."""
    try:
        with torch.inference_mode(), fast_products(route.model.device.type):
            scores: NDArray[np.float32] = route.score(batch).numpy()
            return scores
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if len(batch) == 1 or not _is_out_of_memory(error):
            raise
    _free()
    return None


def shrinking(backbone: Any, run: Callable[[], T]) -> T:
    """`run()`, which makes fixed batches; where they do not fit in memory, again with batches of half the size.

    The size is the backbone's from then on (`smaller`).
    """
    while True:
        try:
            return run()
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error) or backbone.smaller >= SMALLEST:
                raise
        backbone.smaller *= 2
        log.warning("a batch does not fit in memory; batches are divided by %d from now on", backbone.smaller)
        _free()


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
