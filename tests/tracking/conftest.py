"""MLflow databases."""

import shutil

import pytest

from tracking.spool import tracking_uri


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> str:
    """An MLflow database, created once: creating its schema takes seconds."""
    from mlflow import MlflowClient

    home = tmp_path_factory.mktemp("mlflow") / "a?b %20ü"
    home.mkdir()
    uri = tracking_uri(home, None)
    MlflowClient(tracking_uri=uri).search_experiments()
    assert list(home.parent.iterdir()) == [home]
    return uri


@pytest.fixture
def own_store(store, tmp_path) -> str:
    """A database that a test may spoil: a copy of the one that has only its schema and other tests' studies."""
    from tests.sent import file_of

    shutil.copy(file_of(store), tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"
