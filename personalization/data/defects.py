"""What is wrong with data: where, how often, and whether it can still be used."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from personalization.data.records import Dataset
from personalization.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Defect:
    """One kind of thing wrong with the data: its first place, what, and whether the data can still be used.

    `record` counts from 1; 0 is the file as a whole. `records`: how many have it.
    """

    file: str
    record: int
    field: str
    problem: str
    fatal: bool
    records: int = 1

    def __str__(self) -> str:
        if not self.record:
            return f"{self.file}: {self.problem}"
        place = f"record {self.record}: {self.field}: "
        return f"{self.file}: {f'{self.records} records, first ' if self.records > 1 else ''}{place}{self.problem}"


class Defects:
    """Collects defects, equal ones as one."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, bool], Defect] = {}

    def add(self, defect: Defect, kind: str | None = None) -> None:
        """Note a defect; `kind` says what makes it equal to others of its file, where that is not field and problem."""
        same = kind or f"{re.sub(r'[0-9]+', '', defect.field)}: {defect.problem}"
        key = (defect.file, same, defect.fatal)
        known = self._found.get(key)
        self._found[key] = defect if known is None else replace(known, records=known.records + 1)

    def __iter__(self) -> Iterator[Defect]:
        return iter(self._found.values())

    def __bool__(self) -> bool:
        return bool(self._found)


@dataclass(frozen=True)
class Checked:
    """A data set as read, with every kind of defect found. `dataset` is None where nothing usable was found.

    `name`: the task as the data, or the benchmark, calls it; `numbers`: ids that were numbers.
    """

    dataset: Dataset | None
    defects: tuple[Defect, ...]
    name: str = ""
    numbers: Mapping[str, int] = field(default_factory=dict)

    @property
    def fatal(self) -> tuple[Defect, ...]:
        """The defects that make the data unusable."""
        return tuple(defect for defect in self.defects if defect.fatal)

    def usable(self, warned: bool = True) -> Dataset:
        """The data set, after a warning for each kind of defect; DataError with the first fatal one otherwise.

        `warned`: not where whoever asks shows the defects.
        """
        if self.fatal or self.dataset is None:
            more = len(self.fatal) - 1
            rest = f" (and {more} more kinds; `chamtune data check` lists them)" if more > 0 else ""
            raise DataError(f"{self.fatal[0]}{rest}")
        for defect in self.defects if warned else ():
            log.warning("%s", defect)
        return self.dataset


def unreadable(path: Path, problem: str) -> Checked:
    """A file that cannot be decoded."""
    return Checked(None, (Defect(str(path), 0, "", problem, True),))
