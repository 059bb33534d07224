"""The deployment of a folder, as long as a server runs: a new generation takes the place of the old one.

The new one is loaded beside the old one, with the same loaded model where it is the same, and answers a question before
anybody is answered by it. Where that fails, the old one goes on; what failed is kept, and tried again when the folder
changes again. A batch that runs keeps what it began with.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

from personalization.data.records import Question
from personalization.deployment import CONFIG, Deployment, sharing
from personalization.errors import DataError
from tracking.deployed import config_digest

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""The folder is looked at this often."""
TRIED = "a"
"""What a new generation is asked before it serves."""


class Served(NamedTuple):
    """A deployment with its names. `digest` tells its content, the same in each generation that has it."""

    deployment: Deployment
    generation: int
    digest: str

    def described(self) -> dict[str, Any]:
        """JSON-able: generation, content, the model's fingerprint, task, provenance."""
        config = self.deployment.config
        return {
            "generation": self.generation,
            "config": self.digest,
            "model": config["model"]["fingerprint"],
            "task": str(self.deployment.terms.task),
            "labels": list(self.deployment.terms.labels),
            "provenance": config["provenance"],
        }


class Place:
    """A folder and what is served from it. `model`: where the model lies on this machine."""

    def __init__(self, path: Path, model: str | None = None, beside: Deployment | None = None) -> None:
        self.path, self._model = path, model
        self._seen = _signature(path)
        self.failed: str | None = None
        self.swaps = 0
        self.now = opened(path, model, beside)

    async def look(self) -> bool:
        """Load what is new, if there is something new; whether it serves now."""
        found = _signature(self.path)
        if found == self._seen:
            return False
        self._seen = found
        if isinstance(found, str):
            self.failed = found
            log.error("generation %d goes on, and a new one cannot be seen: %s", self.now.generation, found)
            return False
        loading = asyncio.ensure_future(asyncio.to_thread(opened, self.path, self._model, self.now.deployment))
        await asyncio.wait({loading})
        error = loading.exception()
        if error is not None:
            self.failed = str(error)
            log.error("%s: generation %d goes on, a new one fails", self.path, self.now.generation, exc_info=error)
            return False
        self.now, self.failed = loading.result(), None
        self.swaps += 1
        log.info("%s: generation %d serves", self.path, self.now.generation)
        return True


def opened(path: Path, model: str | None = None, beside: Deployment | None = None) -> Served:
    """A deployment that has answered a question; with the model of the one beside it where it is the same."""
    deployment = Deployment.load(path, model)
    if beside is not None:
        deployment = sharing(deployment, beside) or deployment
        refuse_other_terms(deployment, beside)
    config, (task, labels) = deployment.config, deployment.terms
    deployment.predict([Question("tried", "nobody", task.with_labels(labels).question(TRIED), ())])
    return Served(deployment, int(config["generation"]), config_digest(config))


def refuse_other_terms(new: Deployment, old: Deployment) -> None:
    """DataError where one answers other questions, or with other labels."""
    if (new.terms.task.name, set(new.terms.labels)) != (old.terms.task.name, set(old.terms.labels)):
        raise DataError(
            f"a config for {new.terms.task} with the labels {', '.join(new.terms.labels):.200} cannot stand beside one "
            f"for {old.terms.task}, or take its place while clients ask; start a server for it"
        )


def _signature(path: Path) -> tuple[int, int, int] | str:
    """Changes with the config: it is replaced, never written over. Where it cannot be seen, why."""
    try:
        found = os.stat(path / CONFIG if path.is_dir() else path)
    except OSError as error:
        return f"{error.filename}: {error.strerror}; restore it, or promote again"
    return found.st_mtime_ns, found.st_ino, found.st_size
