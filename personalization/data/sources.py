"""From files to tune, select and confirm; read alike by whoever checks data and whoever works with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from personalization.data.defects import Checked, Defect
from personalization.data.lamp import check_dataset, question_files
from personalization.data.splits import DEFAULT_SHARES, PARTS, Splits, split_time, split_train_dev, split_users
from personalization.errors import DataError
from personalization.tasks import Task

SPLITS = ("users", "files", "time")


@dataclass(frozen=True)
class Source:
    """What was read: one data set, those of the train and the dev file, or those of the three parts.

    `split`: how they become parts; `shares`: of users, in each.
    """

    split: str
    read: tuple[Checked, ...]
    shares: Mapping[str, float] = field(default_factory=lambda: DEFAULT_SHARES)

    @property
    def defects(self) -> tuple[Defect, ...]:
        """Those of all files."""
        return tuple(defect for checked in self.read for defect in checked.defects)

    def splits(self, warned: bool = True) -> Splits:
        """The parts; DataError where the data cannot be used, or not be split so. `warned` as for `usable`."""
        read, by_time = [checked.usable(warned) for checked in self.read], self.split == "time"
        if len(read) == len(PARTS):
            tune, select, confirm = read
            return Splits(tune, select, confirm, shared_users=by_time)
        if len(read) == 1:
            return split_time(read[0], self.shares) if by_time else split_users(read[0], self.shares)
        train, dev = read
        return split_train_dev(train, dev, self.shares, shared_users=by_time)


def read_source(path: Path, how: str | None = None, task: Task | None = None) -> Source:
    """Read a folder or file for a way to split it; by default train and dev files as two data sets, all else as one."""
    train, dev = (_files(path, part) for part in ("train", "dev"))
    both = len(train) == 1 and len(dev) == 1
    how = how or ("files" if both else "users")
    if how == "users" or (how == "time" and not (train or dev)):
        return Source(how, (check_dataset(path, task=task),))
    for part, found in (("train", train), ("dev", dev)):
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise DataError(
                f"{path}: split: {how} needs one {part}_questions.json (or {part}.jsonl), and there is {names}; "
                "name the files under data.files, or take split: users"
            )
    return Source(how, tuple(check_dataset(found[0], task=task) for found in (train, dev)))


def _files(path: Path, part: str) -> list[Path]:
    return question_files(path, part) if path.is_dir() else []
