"""Deployments of LaMP-3 on a tiny encoder, and clients that ask them."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from starlette.testclient import TestClient

from personalization.backbones.cached import CachedScorer
from personalization.stages.calibration import Learned, Numbers
from personalization.stages.chain import Fitted
from search_spaces import chain_space
from serving.app import app_of
from serving.place import Place
from serving.run import listening
from serving.service import Service, Terms
from tests.deployed import write_deployed

LABELS = ["1", "2", "3", "4", "5"]


@pytest.fixture(scope="session")
def write_deployment(tiny_encoder):
    """A function that writes a deployment: the taste of users alone, else the label `favourite`."""
    scorer = CachedScorer(str(tiny_encoder), None)

    def write(folder: Path, favourite: int = 4, generation: int = 1, gamma: float = 50.0, **changes: object) -> Path:
        params = chain_space(("calibration",)).BASELINE.changed(gamma=gamma, prior_mode="user")
        none = Numbers({"batch": np.zeros(5)}, 0.0, gamma, 1.0)
        shares = np.full(5, 0.1)
        shares[favourite - 1] = 0.6
        learned = Learned(none, none, shares, (10 * shares).astype(np.int64))
        provenance = {"study": "tiny", "spec": {"constraints": {"entropy": ">= 0.5"}}}
        told = {"generation": generation, "task": "LaMP_3", "labels": LABELS, "provenance": provenance, **changes}
        return write_deployed(folder, Fitted(params, {"calibration": learned}), scorer, **told)

    return write


@pytest.fixture
def deploy(write_deployment, tmp_path):
    return write_deployment(tmp_path / "deploy")


@pytest.fixture
def other(write_deployment, tmp_path):
    """Another deployment, which answers 2."""
    return write_deployment(tmp_path / "other", favourite=2)


@pytest.fixture
def asking(deploy, tmp_path):
    """A function: a client of a running service of the deployment, and the service."""

    @contextmanager
    def start(other=None, token=None, model=None, limits=None, **terms):
        place = Place(deploy)
        beside = None if other is None else Place(other, None, place.now.deployment)
        service = Service(place, Terms(tmp_path / "log", **terms), beside)
        app = app_of(service, ("localhost",), token, **(limits or {}))
        with TestClient(app, base_url="http://localhost", raise_server_exceptions=True) as client:
            client.service = service
            yield client

    return start


@contextmanager
def on_a_port(app):
    """A real server of an application on a free port of this machine; the port."""
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on"))
    with listening("127.0.0.1", 0) as door:
        thread = threading.Thread(target=server.run, args=([door],), daemon=True)
        thread.start()
        until(lambda: server.started)
        yield door.getsockname()[1]
        server.should_exit = True
        thread.join()


def until(true, seconds=20.0):
    """Wait for something to be so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def ask(text="a lamp", **more):
    return {"text": text, **more}


def items(*labels):
    return [{"text": f"a fan {number}", "label": label} for number, label in enumerate(labels)]


def predict(client, asks):
    """The answers to some questions, asked together."""
    return client.post("/predict", json={"questions": asks}).json()["answers"]


def feed(client, answer, label):
    """What is said to the right label of an answer."""
    return client.post("/feedback", json={"request": answer["request"], "label": label})


def same(answer, prediction):
    """Check that an answer over HTTP is the deployment's own."""
    assert (answer["label"], answer["prior"]) == (prediction.label, prediction.prior_mode)
    assert answer["log_probs"] == pytest.approx(prediction.log_probs, rel=0, abs=1e-4)
    assert answer["probability"] == pytest.approx(np.exp(answer["log_probs"][answer["label"]]))
