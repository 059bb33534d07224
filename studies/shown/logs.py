"""What the rooms say while they work, kept in logs/chamtune.log of the home folder; warnings also on the terminal.

Optuna's own lines about studies and trials would say the same again: of them only errors are shown.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

log = logging.getLogger(__name__)

ROOMS = ("serving", "studies", "objectives", "tracking", "personalization")
shown_from = logging.WARNING
"""Level from which messages are shown on the terminal, too."""


@contextmanager
def log_to(home: Path, needed: bool = True) -> Iterator[None]:
    """Keep the rooms' messages inside: which route scores a model and why, what is stored and how large it is.

    Where the home cannot be written, a command that writes nothing there goes on without a log (not `needed`).
    """
    from personalization.files import writing_home

    shown = logging.StreamHandler()
    shown.setLevel(shown_from)
    handlers: list[logging.Handler] = [shown]
    missing = ""
    try:
        with writing_home() if needed else nullcontext():
            handlers.append(_kept(home / "logs"))
    except OSError as error:
        if needed:
            raise
        missing = f"no log is kept: {error.filename}: {error.strerror}"
    loggers = [logging.getLogger(room) for room in ROOMS]
    before = [logger.level for logger in loggers]
    import optuna

    told = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        for logger in loggers:
            logger.setLevel(logging.INFO)
            for handler in handlers:
                logger.addHandler(handler)
        if missing:
            log.warning(missing)
        yield
    finally:
        optuna.logging.set_verbosity(told)
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
            for handler in handlers:
                logger.removeHandler(handler)
        for handler in handlers:
            handler.close()


class _File(logging.FileHandler):
    """A disk that does not take the log any longer keeps nobody from an answer: that is said once."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self.setLevel(logging.CRITICAL + 1)
        with suppress(OSError):
            self.close()
        log.warning("no log is kept any longer: %s: %s", self.baseFilename, error.strerror)


def _kept(folder: Path) -> logging.FileHandler:
    folder.mkdir(parents=True, exist_ok=True)
    handler = _File(folder / "chamtune.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler
