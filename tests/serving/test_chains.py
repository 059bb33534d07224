"""Every kind of chain answers over HTTP as it does in a process, also beside a shadow that has the same model."""

import numpy as np
import pytest
import yaml
from starlette.testclient import TestClient

from personalization.backbones.cached import CachedScorer
from personalization.data.records import Dataset
from personalization.deployment import CONFIG, FORMAT, Deployment, write_files
from personalization.stages.work import Tools
from serving.app import app_of
from serving.place import Place
from serving.service import Service, Terms
from tests.personalization.stages.chains import ACTIVE, fitted_on, growing, params_of

PLAIN = ACTIVE["calibration"][0]
KINDS = {
    "prompt": ACTIVE["prompt"][0],
    "steering": ACTIVE["steering"][0],
    "adapter": ACTIVE["adapter"][2],
    "head": ACTIVE["head"][0],
}


@pytest.fixture(scope="module")
def tools(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chains")
    return Tools(CachedScorer(str(tiny_model), folder / "scores"), folder=folder / "adapters")


def deployed(tools, folder, names, *chosen):
    tune = growing(4, 8, 2)
    fitted = fitted_on(tune, params_of(names, PLAIN, *chosen), tools)
    model = {"path": tools.scorer.model, "dtype": "float32", "device": "auto", "blocks": None, "chat": False}
    config = {
        "format": FORMAT,
        "generation": 1,
        "model": {**model, "fingerprint": tools.scorer.fingerprint},
        "task": tune.task.model_dump(mode="json", exclude_defaults=True),
        "labels": list(tune.labels),
        **write_files(fitted, folder),
        "provenance": {},
    }
    (folder / CONFIG).write_text(yaml.safe_dump(config))
    return folder


@pytest.mark.parametrize("kind", ["prompt", *(pytest.param(k, marks=pytest.mark.slow) for k in list(KINDS)[1:])])
def test_http_answers_are_the_chains_own_with_and_without_a_shadow(kind, tools, tmp_path):
    deploy = deployed(tools, tmp_path / "deploy", (kind, "calibration"), KINDS[kind])
    other = deployed(tools, tmp_path / "other", ("calibration",))
    asked = growing(5, 3)
    wanted = Deployment.load(deploy).predict(asked.questions)
    asks = [
        {"text": q.text, "user": q.user_id, "history": [{"text": h.text, "label": h.label} for h in q.history]}
        for q in Dataset(asked.task, asked.labels, asked.questions).questions
    ]
    for beside in (None, other):
        place = Place(deploy)
        shadow = None if beside is None else Place(beside, None, place.now.deployment)
        service = Service(place, Terms(tmp_path / "log"), shadow)
        with TestClient(app_of(service, ("localhost",)), base_url="http://localhost") as client:
            found = client.post("/predict", json={"questions": asks}).json()["answers"]
            alone = [client.post("/predict", json=one).json() for one in asks]
        for answer, single, prediction in zip(found, alone, wanted, strict=True):
            assert answer["label"] == single["label"] == prediction.label
            for label, value in prediction.log_probs.items():
                assert np.abs([answer["log_probs"][label] - value, single["log_probs"][label] - value]).max() < 1e-4
