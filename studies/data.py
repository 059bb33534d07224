"""From a spec's data section to splits."""

from __future__ import annotations

from pathlib import Path

from personalization.data.demo.world import make_world
from personalization.data.lamp import read_dataset
from personalization.data.records import Dataset
from personalization.data.splits import Splits, split_train_dev, split_users
from personalization.errors import DataError
from studies.spec import StudySpec

WORLDS = ("demo", "demo-null")
"""Names of the planted worlds."""


def load_dataset(path: str, seed: int = 0) -> Dataset:
    """The planted world of this seed for demo or demo-null, else LaMP files."""
    if path in WORLDS:
        return make_world(seed, null=path == "demo-null").dataset
    return read_dataset(Path(path))


def _read_only(folder: Path, part: str) -> Dataset:
    """The one questions file of a folder that is named after a part."""
    found = sorted([*folder.glob(f"{part}_*questions.json"), *folder.glob(f"{part}*.jsonl")])
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise DataError(
            f"{folder}: split: files needs one {part}_questions.json (or {part}.jsonl), and there is {names}; "
            "name the files under data.files, or take split: users"
        )
    return read_dataset(found[0])


def load_splits(spec: StudySpec) -> Splits:
    """Read the data and split it by user, or read one file for each part."""
    if spec.data.files is not None:
        files = spec.data.files
        return Splits(*(read_dataset(Path(path)) for path in (files.tune, files.select, files.confirm)))
    assert spec.data.path is not None
    shares = {str(part): share for part, share in spec.data.shares.items()}
    if spec.data.split == "files":
        train, dev = (_read_only(Path(spec.data.path), part) for part in ("train", "dev"))
        return split_train_dev(train, dev, shares)
    return split_users(load_dataset(spec.data.path, spec.seed), shares)
