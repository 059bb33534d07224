"""What a study will hold on disk and in memory, said before it spends time on trials.

What the process holds already, data, model and the baseline's pass, is measured; what the stages will hold is their own
formula (`personalization.stages.holdings`). Both are bounds: a study that ends early holds less.
"""

from __future__ import annotations

import resource
import shutil
import sys
from typing import NamedTuple

import psutil

from personalization.backbones.location import weights_of
from personalization.scoring.products import BYTES_OF_SHAPE, KEPT
from personalization.stages.chain import holds
from personalization.stages.holdings import sizes_of
from studies.study import OpenStudy

TRIAL = 60_000
"""Bytes of a trial in the storage and in MLflow."""
BEGUN = 20_000_000
"""Bytes of a home in which a study has begun, tables and figures included."""
LATER = 150_000_000
"""Bytes of libraries that are loaded only now: those of training, of solvers and of figures."""
SLACK = 1.15
"""What the allocator and Python's own objects take on top."""
ITEMSIZES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Footprint(NamedTuple):
    """Bytes at most on disk and in memory, and what is free of both; on a card, what lies on it beside the batches."""

    disk: float
    memory: float
    free_disk: float
    free_memory: float
    card: float | None = None


def footprint(opened: OpenStudy) -> Footprint:
    """What a study that was just opened will hold; without what of it is there already on disk."""
    scorer, spec = opened.scorer, opened.spec
    tune = opened.objective.work("tune")
    sizes = sizes_of(tune.dataset, tune.prompts, scorer.files, ITEMSIZES[scorer.dtype], spec.trials)
    found = holds(opened.rooms.chain, opened.rooms.reachable(opened.space), sizes)
    weights = weights_of(scorer.files)
    loaded = 0 if "backbone" in vars(scorer) else 2 * weights
    if scorer.retriever is not None and "backbone" not in vars(scorer.retriever):
        loaded += 2 * weights_of(scorer.retriever.files)
    on_card = scorer.place != "cpu"
    products = 0 if on_card else KEPT * BYTES_OF_SHAPE
    memory = LATER + products + SLACK * (_resident() + loaded + found.memory - (found.beside_model if on_card else 0))
    return Footprint(
        BEGUN + spec.trials * TRIAL + found.disk,
        memory,
        shutil.disk_usage(opened.home).free,
        psutil.virtual_memory().available + _resident(),
        weights + found.beside_model if on_card else None,
    )


def said(found: Footprint) -> list[str]:
    """What will be held, in a line, and one more where it does not fit."""
    card = (
        "" if found.card is None else f"; on the card {size(found.card)} and the batches, which shrink to what is left"
    )
    lines = [f"holds up to {size(found.disk)} on disk and {size(found.memory)} in memory{card}"]
    for what, needed, free in (
        ("disk", found.disk, found.free_disk),
        ("memory", found.memory, found.free_memory),
    ):
        if needed > free:
            lines.append(
                f"mind: only {size(free)} of {what} are free; give fewer trials, a smaller space or fewer tune users"
            )
    return lines


def size(number: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def _resident() -> float:
    """The largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
