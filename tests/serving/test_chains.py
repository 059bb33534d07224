"""Every kind of chain answers over HTTP as it does in a process, beside a shadow of the same model and across swaps."""

import http.client
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml
from starlette.testclient import TestClient

from personalization.backbones.cached import CachedScorer
from personalization.deployment import CONFIG, Deployment
from personalization.files import write_atomic
from personalization.stages.work import Tools
from serving.app import app_of
from serving.place import Place
from serving.run import LOCAL
from serving.service import Service, Terms
from tests.deployed import write_deployed
from tests.personalization.stages.chains import ACTIVE, fitted_on, growing, params_of
from tests.serving.conftest import on_a_port, predict, same

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
    task = tune.task.model_dump(mode="json", exclude_defaults=True)
    return write_deployed(folder, fitted, tools.scorer, task=task, labels=list(tune.labels))


def asks_of(dataset):
    """A data set's questions as clients ask them."""
    return [
        {"text": q.text, "user": q.user_id, "history": [{"text": h.text, "label": h.label} for h in q.history]}
        for q in dataset.questions
    ]


@pytest.mark.parametrize("kind", ["prompt", *(pytest.param(k, marks=pytest.mark.slow) for k in list(KINDS)[1:])])
def test_http_answers_are_the_chains_own_with_and_without_a_shadow(kind, tools, tmp_path):
    deploy = deployed(tools, tmp_path / "deploy", (kind, "calibration"), KINDS[kind])
    other = deployed(tools, tmp_path / "other", ("calibration",))
    asked = growing(5, 3)
    wanted = Deployment.load(deploy).predict(asked.questions)
    asks = asks_of(asked)
    for beside in (None, other):
        place = Place(deploy)
        shadow = None if beside is None else Place(beside, None, place.now.deployment)
        service = Service(place, Terms(tmp_path / "log"), shadow)
        with TestClient(app_of(service, ("localhost",)), base_url="http://localhost") as client:
            found = predict(client, asks)
            alone = [client.post("/predict", json=one).json() for one in asks]
        for answer, single, prediction in zip(found, alone, wanted, strict=True):
            same(answer, prediction)
            same(single, prediction)


SWAPS, CLIENTS, BETWEEN = 20, 8, 30
"""Generations that take over, clients, and answers at least between two of them."""


def as_generation(number, folder, deploy):
    """Put a deployment in the place of another one, as a promotion does: files first, then the config at once."""
    config = yaml.safe_load((folder / CONFIG).read_text())
    shutil.copytree(folder / config["folder"], deploy / config["folder"], dirs_exist_ok=True)
    write_atomic(deploy / CONFIG, yaml.safe_dump({**config, "generation": number}))


def conversation(port, asks, first, found, going):
    """One client on one connection; every answer is kept."""
    line, at = http.client.HTTPConnection("127.0.0.1", port, timeout=60), first
    while going():
        place = at % len(asks)
        line.request("POST", "/predict", json.dumps(asks[place]), {"content-type": "application/json"})
        reply = line.getresponse()
        found.append((reply.status, place, json.loads(reply.read())))
        at += 1
    line.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_swaps_between_all_kinds_under_load_drop_nothing_and_change_no_answer(tools, tmp_path, monkeypatch):
    """Each answer is what `predict` of the generation that it names says to that question."""
    monkeypatch.setattr("serving.service.LOOK_S", 0.05)
    names = ["calibration", *KINDS]
    folders = [deployed(tools, tmp_path / "calibration", ("calibration",))]
    folders += [deployed(tools, tmp_path / kind, (kind, "calibration"), KINDS[kind]) for kind in KINDS]
    asked = growing(5, 5)
    wanted = [Deployment.load(folder).predict(asked.questions) for folder in folders]
    asks = asks_of(asked)
    deploy = tmp_path / "deploy"
    deploy.mkdir()
    as_generation(1, folders[0], deploy)
    service = Service(Place(deploy), Terms(tmp_path / "log"))
    found, going = [], True
    with on_a_port(app_of(service, LOCAL)) as port, ThreadPoolExecutor(CLIENTS) as pool:
        running = [pool.submit(conversation, port, asks, n, found, lambda: going) for n in range(CLIENTS)]
        try:
            for generation in range(2, SWAPS + 2):
                as_generation(generation, folders[(generation - 1) % len(names)], deploy)
                while service.place.now.generation != generation:
                    assert service.place.failed is None
                    time.sleep(0.01)
                before = len(found)
                while len(found) < before + BETWEEN and not any(one.done() for one in running):
                    time.sleep(0.01)
        finally:
            going = False
        for one in running:
            one.result()
    assert {status for status, _, _ in found} == {200}
    assert service.place.swaps == SWAPS
    assert {answer["generation"] for _, _, answer in found} == set(range(1, SWAPS + 2))
    for _, place, answer in found:
        same(answer, wanted[(answer["generation"] - 1) % len(names)][place])
    assert len({answer["request"] for _, _, answer in found}) == len(found)
    assert len(found) > SWAPS * BETWEEN
