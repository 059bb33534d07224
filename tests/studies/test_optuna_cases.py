"""Optuna's own cases for a storage, over those that studies are kept in."""

import gc
import uuid

import pytest
from optuna.testing.pytest_storages import StorageTestCase

from studies.storage import open_storage, storage_url


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a copy by pickle is left open there
class TestStorages(StorageTestCase):
    @pytest.fixture(params=["sqlite", "postgresql"])
    def storage(self, request, tmp_path):
        """An empty storage, opened as commands open it."""
        url = storage_url(tmp_path, None)
        if request.param == "postgresql":
            url = request.getfixturevalue("postgresql")(f"d{uuid.uuid4().hex}")
        opened = open_storage(url)
        yield opened
        opened.remove_session()
        opened.engine.dispose()
        gc.collect()
