"""A run says what it will hold, and holds no more on disk."""

import pytest

from personalization.stages import STAGES
from search_spaces import chain_space
from search_spaces.route import arms_of
from studies.footprint import Footprint, footprint, said, size
from studies.runner import run_study
from studies.study import open_study

ARMS = arms_of([chain_space(("calibration",)).BASELINE, chain_space(("prompt",)).BASELINE.changed(prompt__k=2)])
CHAINS = [
    ({"chain": ["calibration"]}, {}),
    ({"chain": ["prompt", "calibration"]}, {"k": [0, 2]}),
    ({"chain": ["route"]}, {"arms": ARMS}),
    ({"chain": ["steering", "calibration"]}, {"alpha_personal": [0.5, 1.0]}),
    ({"chain": ["head", "calibration"]}, {"head": "logistic", "level": ["unified", "user"]}),
    ({"chain": ["adapter", "calibration"]}, {"adapter": "lora", "blend": 1.0, "epochs": 1, "rank": 2}),
]


def test_every_stage_is_among_the_chains():
    assert set(STAGES) == {stage for told, _ in CHAINS for stage in told["chain"]}


@pytest.mark.parametrize(("told", "space"), [pytest.param(*chain, marks=pytest.mark.slow) for chain in CHAINS])
def test_a_study_holds_no_more_than_it_said(told, space, spec_of, tmp_path):
    spec = spec_of(**told, space=space, sampler="random", trials=4)
    found = footprint(open_study(spec, tmp_path))
    run_study(spec, tmp_path)
    held = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert held <= found.disk


def test_a_run_says_it(spec_of, tmp_path, kept_scores, no_results):
    told = []

    class Watching:
        def __getattr__(self, name):
            return lambda *given: told.append(given) if name == "opened" else None

    run_study(spec_of(trials=1), tmp_path, Watching())
    [(_, found)] = told
    assert isinstance(found, Footprint)
    assert found.card is None
    assert said(found)[0].startswith("holds up to ")


def test_what_does_not_fit_is_said():
    found = Footprint(disk=3e9, memory=5e9, free_disk=2e9, free_memory=9e9, card=7e9)
    first, mind = said(found)
    assert (
        first
        == "holds up to 3 GB on disk and 5 GB in memory; on the card 7 GB and the batches, which shrink to what is left"
    )
    assert mind.startswith("mind: only 2 GB of disk are free")


@pytest.mark.parametrize(("number", "text"), [(0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (2.5e12, "2.5 TB")])
def test_sizes_for_people(number, text):
    assert size(number) == text
