"""From a spec's data section to splits."""

from __future__ import annotations

from pathlib import Path

from personalization.data.demo.world import make_world
from personalization.data.lamp import read_dataset
from personalization.data.sources import read_source, split
from personalization.data.splits import Splits
from studies.spec import StudySpec

WORLDS = ("demo", "demo-null")
"""Names of the planted worlds."""


def load_splits(spec: StudySpec) -> Splits:
    """Read the data as the spec says, or draw the planted world of its seed."""
    data = spec.data
    if data.files is not None:
        paths = (data.files.tune, data.files.select, data.files.confirm)
        tune, select, confirm = (read_dataset(Path(path)) for path in paths)
        return Splits(tune, select, confirm, shared_users=data.split == "time")
    assert data.path is not None
    shares = {str(part): share for part, share in data.shares.items()}
    if data.path in WORLDS:
        return split(data.split, [make_world(spec.seed, null=data.path == "demo-null").dataset], shares)
    return read_source(Path(data.path), data.split).splits(shares)
