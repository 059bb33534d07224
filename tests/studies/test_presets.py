"""The presets hold what their comments say."""

from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution
from personalization.methods.steering.user_steering import UserSteering

import studies
from search_spaces import load_space, needed, overridden, parameters
from studies.spec import load_spec

PRESETS = sorted(path.stem for path in (Path(studies.__file__).parent / "presets").glob("*.yaml"))


def space_of(spec):
    rooms = load_space(spec.objective)
    whole = overridden(parameters(rooms, "causal"), spec.space, getattr(rooms, "OPEN", None))
    return rooms, needed(rooms, whole, spec.space)


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
    steering = object.__new__(UserSteering)
    steering.__dict__["_norms"] = [1.0] * 6
    sets = {steering._layers(rooms.decode({**first, "start": start})) for start in spec.space["start"]}
    assert sets == {(2, 3), (3, 4), (4, 5)}
