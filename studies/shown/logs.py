"""What the rooms say while they work, kept in logs/chamtune.log of the home folder; warnings also on the terminal.

Optuna's own lines about studies and trials would say the same again: of them only errors are shown.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOMS = ("serving", "studies", "objectives", "tracking", "personalization")
shown_from = logging.WARNING
"""Level from which messages are shown on the terminal, too."""


@contextmanager
def log_to(home: Path) -> Iterator[None]:
    """Keep the rooms' messages inside: which route scores a model and why, what is stored and how large it is."""
    (home / "logs").mkdir(parents=True, exist_ok=True)
    kept = logging.FileHandler(home / "logs" / "chamtune.log", encoding="utf-8")
    kept.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    shown = logging.StreamHandler()
    shown.setLevel(shown_from)
    loggers = [logging.getLogger(room) for room in ROOMS]
    before = [logger.level for logger in loggers]
    import optuna

    told = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        for logger in loggers:
            logger.setLevel(logging.INFO)
            logger.addHandler(kept)
            logger.addHandler(shown)
        yield
    finally:
        optuna.logging.set_verbosity(told)
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
            logger.removeHandler(kept)
            logger.removeHandler(shown)
        kept.close()
