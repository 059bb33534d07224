"""The law of the chain: answers together = alone = shuffled = from the saved folder in a fresh process."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from personalization.backbones.cached import CachedScorer
from personalization.data.records import Dataset
from personalization.methods.taste.own import Between
from personalization.stages import STAGES, chain
from personalization.stages.work import Tools, begin
from tests.personalization.stages.chains import (
    ACTIVE,
    answers_to,
    combinations,
    encoded,
    fitted_on,
    growing,
    params_of,
    retrieved,
    singles,
)
from tests.tiny import make_model, make_tokenizer

ROOT = Path(__file__).parents[3]
PLAIN = ACTIVE["calibration"][0]
SINGLES, PAIRS, TRIPLES = singles(), combinations(2), combinations(3)
GATE = [params for params in PAIRS if {"adapter", "steering"} < set(params)]
CHAINS = [
    params if params in (*SINGLES, *GATE) else pytest.param(params, marks=pytest.mark.slow)
    for params in (*SINGLES, *PAIRS, *TRIPLES)
]
FRESH = """
import json, sys
from pathlib import Path
from personalization.backbones.cached import CachedScorer
from personalization.stages import chain
from tests.personalization.stages.chains import answers_to, growing
model, folder = sys.argv[1:]
scorer, questions, found = CachedScorer(model, None), growing(5, 3), {}
for place in sorted(Path(folder).iterdir()):
    fitted = chain.load(json.loads((place / "chain.json").read_text()), place)
    found[place.name] = answers_to(fitted, questions, scorer).tolist()
print(json.dumps(found))
"""


def named(params):
    return "+".join(
        f"{name}{ACTIVE[name].index(found) if found in ACTIVE[name] else ''}" for name, found in _settings(params)
    )


def _settings(params):
    for name in params:
        own = {f"{name}.{key}": getattr(params[name], key) for key in params[name].__dataclass_fields__}
        match = [some for some in ACTIVE.get(name, []) if some.items() <= own.items()]
        yield name, match[0] if match else None


@pytest.fixture(scope="module")
def calm_model(tmp_path_factory):
    """A random model whose weights do not blow rounding up to what is tested here."""
    folder = tmp_path_factory.mktemp("calm")
    make_model("llama", times=3.0).save_pretrained(folder)
    make_tokenizer(bos=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scorer(calm_model, tmp_path_factory):
    return CachedScorer(str(calm_model), tmp_path_factory.mktemp("law") / "scores")


@pytest.fixture(scope="module")
def tools(scorer):
    return Tools(scorer, folder=scorer.folder.parent / "adapters")


@pytest.fixture(scope="module")
def tune():
    return growing(4, 8, 2)


@pytest.fixture(scope="module")
def asked():
    return growing(5, 3)


def blown_up(fitted):
    """By how much a calibration enlarges rounding of the scores."""
    if "route" in fitted.learned:
        return max(map(blown_up, fitted.learned["route"].arms))
    found = fitted.learned["calibration"]
    return max(1.0, *((1 + abs(numbers.beta)) / numbers.tau for numbers in (found.plain, found.moved)))


def some(dataset, rows):
    return Dataset(dataset.task, dataset.labels, tuple(dataset.questions[row] for row in rows))


def test_every_stage_is_tested():
    assert set(STAGES) == set(ACTIVE)


def law_holds(params, tune, asked, tools, folder):
    """Answers together, alone, shuffled and from the saved folder are the same."""
    scorer, fitted = tools.scorer, fitted_on(tune, params, tools)
    together = answers_to(fitted, asked, scorer)
    order = np.random.default_rng(0).permutation(len(asked))
    shuffled = answers_to(fitted, some(asked, order), scorer)
    alone = np.concatenate([answers_to(fitted, some(asked, [row]), scorer) for row in range(len(asked))])
    loaded = chain.load(json.loads(json.dumps(chain.save(fitted, folder))), folder)
    from_folder = answers_to(loaded, asked, scorer.unstored())
    for other in (alone, shuffled[np.argsort(order)], from_folder):
        assert np.abs(other - together).max() <= 1e-5 * blown_up(fitted)
        assert (other.argmax(axis=1) == together.argmax(axis=1)).all()
    plain = answers_to(fitted_on(tune, params.__class__(()), tools), asked, scorer)
    assert np.abs(together - plain).max() > 1e-3


@pytest.mark.parametrize("params", CHAINS, ids=named)
def test_together_is_alone_is_shuffled_is_saved(params, tune, asked, tools, tmp_path):
    law_holds(params, tune, asked, tools, tmp_path)


def test_the_law_holds_for_questions_of_one_history_of_which_the_gate_lets_some_through(tune, asked, tools, tmp_path):
    params = params_of(("steering", "head", "calibration"), PLAIN, ACTIVE["steering"][1], ACTIVE["head"][0])
    fitted = fitted_on(tune, params, tools)

    def of_one(history):
        questions = tuple(replace(q, user_id="one", history=history, date=None) for q in asked.questions)
        return Dataset(asked.task, asked.labels, questions)

    def let_through(dataset):
        return chain.acted(fitted, "steering", begin(dataset, Tools(tools.scorer)), tools).touched

    worlds = map(of_one, (question.history for question in asked.questions))
    several = next(world for world in worlds if len(set(let_through(world))) == 2)
    law_holds(params, tune, several, tools, tmp_path)


@pytest.mark.parametrize("below", [{}, ACTIVE["prompt"][0]], ids=["bare", "with items"])
def test_the_law_holds_for_strengths_of_each_user(below, tune, asked, tools, tmp_path, monkeypatch):
    monkeypatch.setattr(Between, "used", True)  # a random model's answers hold nothing to learn
    params = params_of(("prompt", "calibration"), ACTIVE["calibration"][-1], below)
    law_holds(params, tune, asked, tools, tmp_path)
    common = fitted_on(tune, params.changed(per_user="none"), tools)
    own = answers_to(fitted_on(tune, params, tools), asked, tools.scorer)
    assert np.abs(own - answers_to(common, asked, tools.scorer)).max() > 1e-3
    stranger = Dataset(asked.task, asked.labels, (replace(asked.questions[0], history=()),))
    found = [answers_to(fitted, stranger, tools.scorer) for fitted in (common, fitted_on(tune, params, tools))]
    assert np.allclose(*found)


def test_strengths_that_do_not_help_are_not_used(tune, asked, tools):
    params = params_of(("calibration",), ACTIVE["calibration"][-1])
    fitted = fitted_on(tune, params, tools)
    tried = fitted.learned["calibration"].apart
    assert [one.name for one in tried] == ["gamma", "kappa", "tau"]
    assert len(chain.facts(fitted, tools).remarks) == 3
    refused = replace(fitted.learned["calibration"], apart=tuple(one._replace(gain=0.0) for one in tried))
    without = chain.Fitted(params, {"calibration": refused})
    common = fitted_on(tune, params.changed(per_user="none"), tools)
    assert (answers_to(without, asked, tools.scorer) == answers_to(common, asked, tools.scorer)).all()


@pytest.mark.parametrize("params", encoded(), ids="+".join)
def test_the_law_holds_for_encoders(params, tune, asked, tiny_encoder, tmp_path_factory, tmp_path):
    folder = tmp_path_factory.mktemp("encoder")
    tools = Tools(CachedScorer(str(tiny_encoder), folder / "scores"), folder=folder / "adapters")
    law_holds(params, tune, asked, tools, tmp_path)


@pytest.mark.parametrize("params", retrieved(), ids="+".join)
def test_the_law_holds_with_a_retriever(params, tune, asked, calm_model, tiny_encoder, tmp_path_factory, tmp_path):
    folder = tmp_path_factory.mktemp("retriever")
    encoder = CachedScorer(str(tiny_encoder), folder / "scores")
    tools = Tools(CachedScorer(str(calm_model), folder / "scores"), folder=folder / "adapters")
    tools.scorer.retriever = encoder
    law_holds(params, tune, asked, tools, tmp_path)
    assert encoder.texts_asked
    assert not tools.scorer.texts_asked


def test_a_route_that_was_saved_when_one_chain_answered_is_read(tune, asked, tools, scorer, tmp_path):
    fitted = fitted_on(tune, params_of(("route",), ACTIVE["route"][0]), tools)
    listed = json.loads(json.dumps(chain.save(fitted, tmp_path)))
    del listed[0]["params"]["answer"]
    found = answers_to(chain.load(listed, tmp_path), asked, scorer)
    assert np.abs(found - answers_to(fitted, asked, scorer)).max() <= 1e-5


@pytest.mark.slow
def test_a_fresh_process_answers_from_the_folders(calm_model, tune, asked, tools, scorer, tmp_path):
    expected = {}
    for number, params in enumerate([*SINGLES, *TRIPLES]):
        folder = tmp_path / str(number)
        folder.mkdir()
        fitted = fitted_on(tune, params, tools)
        (folder / "chain.json").write_text(json.dumps(chain.save(fitted, folder)))
        expected[str(number)] = fitted, answers_to(fitted, asked, scorer)
    command = [sys.executable, "-c", FRESH, str(calm_model), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    for name, (fitted, table) in expected.items():
        assert np.abs(np.array(found[name]) - table).max() <= 1e-5 * blown_up(fitted)


@pytest.mark.parametrize("skipped", [name for name in STAGES if name != "calibration"])
def test_serving_that_skips_a_stage_is_caught(skipped, tune, asked, tools, scorer, monkeypatch):
    params = next(found for found in SINGLES if skipped in found)
    fitted = fitted_on(tune, params, tools)
    expected = answers_to(fitted, asked, scorer)
    monkeypatch.setattr(chain.stage(skipped), "act", lambda params, learned, work, tools: work)
    assert np.abs(answers_to(fitted, asked, scorer) - expected).max() > 1e-3
