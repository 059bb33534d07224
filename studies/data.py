"""From a spec's data section to splits."""

from __future__ import annotations

from pathlib import Path

from personalization.data.demo.world import make_world
from personalization.data.lamp import read_dataset
from personalization.data.records import Dataset
from personalization.data.splits import Splits, split_users
from studies.spec import StudySpec


def load_dataset(path: str, seed: int = 0) -> Dataset:
    """The planted world of this seed for demo or demo-null, else LaMP files."""
    if path in ("demo", "demo-null"):
        return make_world(seed, null=path == "demo-null").dataset
    return read_dataset(Path(path))


def load_splits(spec: StudySpec) -> Splits:
    """Read the data and split it by user, or read one file for each part."""
    if spec.data.files is not None:
        files = spec.data.files
        return Splits(*(read_dataset(Path(path)) for path in (files.tune, files.select, files.confirm)))
    assert spec.data.path is not None
    return split_users(
        load_dataset(spec.data.path, spec.seed), {str(part): share for part, share in spec.data.shares.items()}
    )
