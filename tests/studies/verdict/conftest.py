"""Studies over planted scores."""

import shutil
from functools import cache

import pytest

from personalization.data.demo.world import make_world
from personalization.data.lamp import write_dataset
from personalization.data.sources import read_source
from studies.runner import run_study
from studies.spec import parse_spec
from studies.study import open_study
from tests.planted import GOLDS, BiasedScorer
from tests.tiny import SHARES

read_once = cache(read_source)


@pytest.fixture(scope="session")
def world_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    dataset = make_world(23, users=120, questions_per_user=3).dataset
    write_dataset(folder, "w", dataset)
    GOLDS.update({q.text: q.gold for q in dataset.questions})
    return folder


@pytest.fixture(scope="session")
def homes(tmp_path_factory):
    """Homes of studies that were run before, by what they were made with."""
    return tmp_path_factory.mktemp("homes"), {}


@pytest.fixture
def make_study(tmp_path, world_folder, tiny_model, monkeypatch, homes, no_results):
    """A function that opens a study over planted scores in a home of the test's own; each is run once for all tests."""

    def make(scorer=BiasedScorer, **changes):
        monkeypatch.setattr("studies.study.CachedScorer", scorer)
        monkeypatch.setattr("personalization.deployment.CachedScorer", scorer)
        monkeypatch.setattr("studies.data.read_source", read_once)
        raw = {
            "name": "planted",
            "data": {"path": str(world_folder), "shares": SHARES},
            "model": {"path": str(tiny_model)},
            "constraints": {"entropy": ">= 0.6", "top1_share": "<= 0.55"},
            "trials": 16,
            "tracking": "none",
        }
        spec = parse_spec({**raw, **changes}, "test")
        home = tmp_path / "home"
        if home.exists() or spec.storage is not None:
            run_study(spec, home)
            return open_study(spec, home)
        folder, known = homes
        identity = f"{scorer.skill} {scorer.bias} {spec.trials} {spec.model.path} {spec.identity()}"
        made = known.setdefault(identity, folder / str(len(known)))
        if not made.exists():
            run_study(spec, made)
        shutil.copytree(made, home)
        return open_study(spec, home)

    return make
