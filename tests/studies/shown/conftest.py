"""A home with imported experiments, and its pages."""

import optuna
import pytest
from fastapi.testclient import TestClient
from optuna.distributions import CategoricalDistribution

from studies.foreign import import_rows, rows_of
from studies.shown.pages.app import application
from studies.shown.pages.house import House
from studies.storage import storage_url
from tests.studies.test_foreign import EXPERIMENTS, MAPPED


def house_of(home) -> House:
    return House(home, storage_url(home, None), "http://127.0.0.1:8080", None, None)


def client_of(house: House) -> TestClient:
    return TestClient(application(house), base_url="http://127.0.0.1")


def odd_studies(url: str) -> list[str]:
    """Studies that no chamtune made, with whatever Optuna lets in."""
    optuna.create_study(storage=url, study_name="empty")
    failed = optuna.create_study(storage=url, study_name="failed")
    failed.add_trial(optuna.create_trial(state=optuna.trial.TrialState.FAIL))
    broken = optuna.create_study(storage=url, study_name="infeasible")
    mixed = optuna.create_study(storage=url, study_name="mixed", directions=["minimize", "maximize"])
    space = {
        "any": CategoricalDistribution([None, True, 3, 0.5, "x"]),
        "count": optuna.distributions.IntDistribution(1, 10**6),
        "one": CategoricalDistribution([1]),
    }
    for place in range(30):
        params = {"any": space["any"].choices[place % 5], "count": 1 + 31_001 * place, "one": 1}
        attributes = {"measured": 3, "items": "no items", "foreign": None}
        named = {name: value for name, value in params.items() if name != "count" or place % 2}
        chosen = {name: space[name] for name in named}
        mixed.add_trial(
            optuna.create_trial(params=named, distributions=chosen, values=[place, -place], user_attrs=attributes)
        )
        broken.add_trial(optuna.create_trial(params=named, distributions=chosen, value=1.0, constraints={"c": 1.0}))
    return ["empty", "failed", "infeasible", "mixed"]


@pytest.fixture(scope="module")
def experiments(tmp_path_factory):
    """A home with the imported experiments."""
    home = tmp_path_factory.mktemp("pages") / "home"
    import_rows(rows_of(EXPERIMENTS)[0], MAPPED, "experiments", (home, None))
    return home
