"""Deployments of LaMP-3 on a tiny encoder, and clients that ask them."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml
from starlette.testclient import TestClient

from personalization.backbones.cached import CachedScorer
from personalization.deployment import CONFIG, FORMAT, write_files
from personalization.files import write_atomic
from personalization.stages.calibration import Learned, Numbers
from personalization.stages.chain import Fitted
from search_spaces import chain_space
from serving.app import app_of
from serving.place import Place
from serving.service import Service, Terms

LABELS = ["1", "2", "3", "4", "5"]


@pytest.fixture(scope="session")
def write_deployment(tiny_encoder):
    """A function that writes a deployment: the taste of users alone, else the label `favourite`."""
    scorer = CachedScorer(str(tiny_encoder), None)
    model = {"path": str(tiny_encoder), "dtype": "float32", "device": "auto", "blocks": None, "chat": False}

    def write(folder: Path, favourite: int = 4, generation: int = 1, gamma: float = 50.0, **changes: object) -> Path:
        params = chain_space(("calibration",)).BASELINE.changed(gamma=gamma, prior_mode="user")
        none = Numbers({"batch": np.zeros(5)}, 0.0, gamma, 1.0)
        shares = np.full(5, 0.1)
        shares[favourite - 1] = 0.6
        learned = Learned(none, none, shares, (10 * shares).astype(np.int64))
        config = {
            "format": FORMAT,
            "generation": generation,
            "model": {**model, "fingerprint": scorer.fingerprint},
            "task": "LaMP_3",
            "labels": LABELS,
            **write_files(Fitted(params, {"calibration": learned}), folder),
            "provenance": {"study": "tiny", "spec": {"constraints": {"entropy": ">= 0.5"}}},
            **changes,
        }
        write_atomic(folder / CONFIG, yaml.safe_dump(config))
        return folder

    return write


@pytest.fixture
def deploy(write_deployment, tmp_path):
    return write_deployment(tmp_path / "deploy")


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


def ask(text="a lamp", **more):
    return {"text": text, **more}


def items(*labels):
    return [{"text": f"a fan {number}", "label": label} for number, label in enumerate(labels)]
