"""How adapters are trained, as numbers; `loop` says what they mean."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """How adapters are trained. Losses by weight.

    `evaluations` an epoch; `lr_ratio`: of the rates of B and A; `accumulate` batches a step; `clip` bounds the
    gradient's norm; `patience` in evaluations; `warm_up`: share of the steps over which the learning rate rises.
    """

    epochs: int = 4
    evaluations: int = 1
    lr: float = 2e-3
    lr_ratio: float = 1.0
    schedule: str = "cosine"
    accumulate: int = 1
    weight_decay: float = 0.01
    dropout: float = 0.0
    clip: float = 1.0
    label: float = 1.0
    token: float = 0.0
    margin: float = 0.0
    match: float = 0.0
    diversity: float = 0.0
    anchor: float = 0.0
    patience: int = 2
    warm_up: float = 0.1
    seed: int = 0
