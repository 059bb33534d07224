"""From a spec's data section to what was read, and to splits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from personalization.data.defects import Checked
from personalization.data.demo.world import make_world
from personalization.data.lamp import check_dataset
from personalization.data.sources import Source, read_source
from personalization.data.table import read_table
from studies.spec import StudySpec

WORLDS = ("demo", "demo-null")
"""Names of the planted worlds."""


def read_data(spec: StudySpec) -> Source:
    """What a spec's data are, with every defect, and how they become parts."""
    return replace(_source(spec), shares=spec.shares)


def _source(spec: StudySpec) -> Source:
    """What was read; the planted world is drawn by the study's seed."""
    data = spec.data
    if data.path in WORLDS:
        world = make_world(spec.seed, null=data.path == "demo-null")
        return Source(data.split, (Checked(world.dataset, ()),))
    if data.files is not None:
        places = (data.files.tune, data.files.select, data.files.confirm)
        return Source(data.split, tuple(_read(spec, place) for place in places))
    if data.table is not None:
        return Source(data.split, (_read(spec, data.table),))
    return read_source(Path(str(data.path)), data.split, spec.task)


def places_of(spec: StudySpec) -> tuple[str | None, ...]:
    """Files, folders and hub ids that a spec's data are read from; none of the planted world."""
    data, files = spec.data, spec.data.files
    if data.path in WORLDS:
        return ()
    return data.path, data.table, *(() if files is None else (files.tune, files.select, files.confirm))


def _read(spec: StudySpec, place: str) -> Checked:
    columns = spec.data.columns
    if columns is None:
        return check_dataset(Path(place), task=spec.task)
    return read_table(place, columns, spec.task)
