"""A sign of life in the storage, for workers on several machines.

A worker moves a counter, a study attribute, BEATS times in LEASE_S seconds, in a thread with a connection of its own,
so that a long trial does not look like death. Each worker also looks at the counters of the others and counts its own
looks at which one stood still. After BEATS of them that worker is taken for dead. No clock of one machine is compared
with another's; and while the storage is away, or this machine sleeps, nobody looks and nobody dies.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection

import optuna

from studies.storage import STORAGE_ERRORS, open_storage

LEASE_S = 60.0
BEATS = 6
PREFIX = "worker/"
"""Study attribute of a worker: its counter, and whether it is asking for a trial; null when it has ended."""

log = logging.getLogger(__name__)


class Lease:
    """The lease of one worker, and what is known of the others'."""

    def __init__(self, url: str, study_name: str) -> None:
        self._study = optuna.load_study(study_name=study_name, storage=open_storage(url))
        self._worker = ""
        self._looks = 0
        self._counters: dict[str, list[int] | None] = {}
        self._still: dict[str, int] = {}
        self._unclaimed_since: dict[int, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self.asking = False

    def take(self, worker: str) -> None:
        """Begin. From here on others can see that this worker lives."""
        self._worker = worker
        self._beat()
        self._thread.start()

    def give_back(self) -> None:
        """End in good order: nobody needs to wait for the lease to run out."""
        self._over.set()
        self._thread.join(LEASE_S)
        self.end(self._worker)

    def end(self, worker: str) -> None:
        """Say that a worker has ended. Without a storage the lease runs out."""
        try:
            self._study.set_user_attr(f"{PREFIX}{worker}", None)
        except STORAGE_ERRORS:
            log.warning("the storage does not answer; the lease of worker %s runs out in %g s", worker, LEASE_S)

    def expired(self, worker: str) -> bool:
        """Whether a worker has ended, or its counter stood still for a lease."""
        if worker not in self._counters:
            return False
        return self._counters[worker] is None or self._still[worker] >= BEATS

    def alone(self, besides: Collection[str]) -> bool:
        """Whether all others have ended, those left aside of whom the caller knows better.

        A worker that came since the last look is seen, too.
        """
        for other, counter in self._others():
            if other not in self._counters:
                self._counters[other], self._still[other] = counter, 0
        return all(self.expired(other) for other in list(self._counters) if other not in besides)

    def unclaimed(self, number: int) -> bool:
        """Whether a trial has had no stamp for a lease, and nobody who lives is asking for one.

        Some samplers think for long before a trial can be stamped.
        """
        since = self._unclaimed_since.setdefault(number, self._looks)
        asking = any(counter is not None and counter[1] for w, counter in self._counters.items() if not self.expired(w))
        return self._looks - since >= BEATS and not asking

    def _renew(self) -> None:
        while not self._over.wait(LEASE_S / BEATS):
            try:
                self._beat()
            except STORAGE_ERRORS as error:
                log.warning("the lease of worker %s was not renewed: %s", self._worker, error)

    def _beat(self) -> None:
        self._study.set_user_attr(f"{PREFIX}{self._worker}", [self._looks, int(self.asking)])
        for other, counter in self._others():
            before = self._counters.get(other)
            same = counter is not None and before is not None and counter[0] == before[0]
            self._still[other] = self._still.get(other, 0) + 1 if same else 0
            self._counters[other] = counter
        self._looks += 1

    def _others(self) -> list[tuple[str, list[int] | None]]:
        """The counters of the other workers, as the storage has them."""
        told = self._study.user_attrs
        return [
            (key.removeprefix(PREFIX), counter)
            for key, counter in told.items()
            if key.startswith(PREFIX) and key != f"{PREFIX}{self._worker}"
        ]
