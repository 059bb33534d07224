"""The presets hold what their comments say."""

from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution

import studies
from personalization.data.records import Dataset
from personalization.methods.steering.learned import Directions, Reading
from personalization.tasks import task
from studies.spec import load_spec

PRESETS = sorted(path.stem for path in (Path(studies.__file__).parent / "presets").glob("*.yaml"))


def space_of(spec):
    rooms = spec.space_of
    return rooms, rooms.overridden("causal", spec.space)


@pytest.mark.parametrize(
    "name", [name for name in PRESETS if load_spec(name, {"data": {"path": "x"}}).sampler == "grid"]
)
def test_a_grid_is_as_large_as_its_number_of_trials(name):
    spec = load_spec(name)
    _, space = space_of(spec)
    size = 1
    for distribution in space.values():
        assert isinstance(distribution, CategoricalDistribution)
        size *= len(distribution.choices)
    assert size == spec.trials


def test_the_sweep_over_layers_edits_three_sets_of_the_demo_model():
    spec = load_spec("sweep-steering")
    rooms, space = space_of(spec)
    first = {name: distribution.choices[0] for name, distribution in space.items()}
    directions = Directions(Dataset(task("LaMP_2"), (), ()), Reading(6, None, None))
    sets = {directions.layers(rooms.decode({**first, "start": start})["steering"]) for start in spec.space["start"]}
    assert sets == {(2, 3), (3, 4), (4, 5)}
