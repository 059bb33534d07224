"""Studies and deploy configs of the version before chains, written by it: they answer and go on as they did.

`fixtures/format5` holds its database, its configs with what they name, and its answers.
"""

import json
import shutil
from pathlib import Path

import pytest

from personalization.deployment import Deployment
from personalization.errors import DataError
from studies.data import read_data
from studies.study import find_study, located_spec, open_study

OLD = Path(__file__).parent.parent / "fixtures" / "format5"
CONFIGS = sorted(path.stem for path in OLD.glob("*.yaml"))
CLOSE = {"head": 1e-3, "steering": 0.05, "steering-places": 0.05}
"""A head is fitted again, from embeddings that differ in the last digit; directions are read behind history items that
now end with the benchmark's space, as far as they fit."""


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A copy, where the configs name what lies there."""
    folder = tmp_path_factory.mktemp("old") / "format5"
    shutil.copytree(OLD, folder)
    for path in folder.glob("*.yaml"):
        path.write_text(path.read_text().replace("@HERE@", str(folder)))
    (folder / "home").mkdir()
    shutil.move(folder / "studies.db", folder / "home" / "studies.db")
    return folder


@pytest.fixture
def confirm(old, monkeypatch):
    monkeypatch.chdir(old)
    return read_data(located_spec(find_study("calibration", old / "home", None))).splits().confirm


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_of_format_5_answers_as_it_did(name, old, confirm):
    served = Deployment.load(old / f"{name}.yaml")
    expected = json.loads((OLD / f"{name}.answers.json").read_text())
    found = served.predict(confirm.questions[:10])
    assert [answer.id for answer in found] == list(expected)
    for answer in found:
        assert answer.log_probs == pytest.approx(expected[answer.id], abs=2e-5)


def test_a_config_of_format_5_without_its_adapters_is_one_line(old, tmp_path):
    path = tmp_path / "lora.yaml"
    path.write_text((old / "lora.yaml").read_text().replace(str(old), str(tmp_path)))
    with pytest.raises(DataError, match="the adapters of this config are missing or changed"):
        Deployment.load(path)


@pytest.mark.parametrize(
    "name",
    [name if name in ("calibration", "report", "retrieval") else pytest.param(name, marks=pytest.mark.slow)
     for name in CONFIGS],
)  # fmt: skip
def test_a_stored_study_measures_what_it_measured_and_goes_on(name, old, monkeypatch):
    monkeypatch.chdir(old)
    spec = located_spec(find_study(name, old / "home", None))
    opened = open_study(spec.model_copy(update={"trials": spec.trials + 1}), old / "home")
    expected = json.loads((OLD / f"{name}.trials.json").read_text())
    for number, trial in expected.items():
        params = opened.rooms.decode(trial["raw"])
        assert opened.rooms.of_flat(params.flat()) == params
        metrics = opened.objective.evaluate(params).metrics
        if params.get_value("prompt.k"):
            continue  # history items now end with the benchmark's space
        if name == "steering-places" or trial["decoded"].get("general") != "ccs":
            for metric in ("accuracy", "nll"):
                assert metrics[metric] == pytest.approx(trial["metrics"][metric], abs=CLOSE.get(name, 2e-5)), number
    assert [t.params for t in opened.study.get_trials()] == [trial["raw"] for trial in expected.values()]
    assert opened.study.ask(opened.space).params.keys() <= opened.rooms.names.keys()
