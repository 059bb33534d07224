"""Whatever a client does, it is answered with what it did wrong, and others go on."""

import asyncio
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest

from personalization.errors import DataError
from serving.app import app_of
from serving.batching import Batcher
from serving.place import Place
from serving.run import LOCAL
from serving.service import Service, Terms
from tests.serving.conftest import ask, feed, on_a_port


@pytest.fixture
def port(deploy, tmp_path):
    """A real server on a port of this machine, with a body's time cut short."""
    service = Service(Place(deploy), Terms(tmp_path / "log", texts=True))
    with on_a_port(app_of(service, LOCAL, body_s=0.5)) as number:
        yield number


def talk(port, content, wait=5.0):
    """What comes back for raw bytes, until the server closes or waits."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as line:
        line.sendall(content)
        found = b""
        try:
            while part := line.recv(65_536):
                found += part
                head, _, body = found.partition(b"\r\n\r\n")
                sizes = [row for row in head.lower().split(b"\r\n") if row.startswith(b"content-length:")]
                if sizes and len(body) >= int(sizes[0][15:]):
                    break
        except (TimeoutError, ConnectionResetError):
            pass
        return found


def head(length, host="localhost"):
    kind = "Content-Type: application/json"
    return f"POST /predict HTTP/1.1\r\nHost: {host}\r\n{kind}\r\nContent-Length: {length}\r\n\r\n".encode()


GOOD = head(18) + b'{"text": "a lamp"}'


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (head(10_000_000), b"413"),
        (head(100) + b'{"text"', b"408"),
        (head(2, host="evil.example") + b"{}", b"400"),
        (head(2, host="localhost:x]") + b"{}", b"400"),
        (b"POST /predict HTTP/1.1\r\n\r\n", b"400"),
        (b"nonsense\r\n\r\n", b"400"),
        (head(2) + b"\xff\xfe", b"400"),
        (head(20) + b'{"text": "\\u0000 a"}', b"422"),
        (head(20) + b'{"text": "\\u0007 a"}', b"200"),
        (b"GET /predict HTTP/1.1\r\nHost: localhost\r\n\r\n", b"405"),
        (b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404"),
    ],
)
def test_a_fault_of_a_client_is_said_and_the_next_is_answered(port, content, status):
    assert talk(port, content).split(b" ")[1] == status
    assert b"200 OK" in talk(port, GOOD)


def test_an_answer_does_not_wait_for_its_acknowledgement(port):
    """Without TCP_NODELAY each answer on a kept connection takes 40 ms more."""
    took = []
    with socket.create_connection(("127.0.0.1", port)) as line:
        for _ in range(15):
            started = time.perf_counter()
            line.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            found = b""
            while b'"ok"' not in found:
                found += line.recv(65_536)
            took.append(time.perf_counter() - started)
    assert sorted(took)[3] < 0.03


def test_ten_megabytes_without_a_length_are_cut_short(port):
    chunk = b"10000\r\n" + b"a" * 65_536 + b"\r\n"
    start = head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
        line.sendall(start)
        sent = 0
        try:
            while sent < 160:
                line.sendall(chunk)
                sent += 1
            found = line.recv(65_536)
        except (ConnectionResetError, BrokenPipeError):
            found = b""
    assert found == b"" or b"413" in found
    assert b"200 OK" in talk(port, GOOD)


def test_a_client_that_leaves_is_not_waited_for(port):
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", port)) as line:
            line.sendall(GOOD)
    assert b"200 OK" in talk(port, GOOD)


def test_a_log_that_cannot_be_written_is_the_servers_fault_and_said(asking, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with asking() as client:
        monkeypatch.setattr("serving.log.os.write", full)
        reply = client.post("/predict", json=ask())
        assert (reply.status_code, reply.json()) == (
            503,
            {"error": "the log cannot be written: No space left on device"},
        )
        monkeypatch.undo()
        assert client.post("/predict", json=ask()).status_code == 200


def test_a_wrong_question_fails_alone_in_its_batch():
    """Three clients ask together: the batch fails by one of them, and the two others get their answers."""
    runs, others = [], threading.Event()

    def run(asked):
        others.wait(20)
        runs.append(asked)
        if "wrong" in asked:
            raise DataError("not to be answered")
        return [text.upper() for text in asked]

    async def ask_all():
        batcher = Batcher("model", run)
        asked = [asyncio.ensure_future(batcher.of(texts)) for texts in (["first"], ["a", "b"], ["wrong"], ["c"])]
        await asyncio.sleep(0)
        others.set()
        found = await asyncio.gather(*asked, return_exceptions=True)
        batcher.close()
        return found

    first, both, wrong, last = asyncio.run(ask_all())
    assert (first, both, last) == (["FIRST"], ["A", "B"], ["C"])
    assert str(wrong) == "not to be answered"
    assert runs == [["first"], ["a", "b", "wrong", "c"], ["a", "b"], ["wrong"], ["c"]]


def test_histories_that_cannot_be_written_are_said_and_grow_again_afterwards(asking, tmp_path):
    with asking(texts=True) as client:
        answer = client.post("/predict", json=ask(user="u1")).json()
        client.service.histories._store.execute("PRAGMA busy_timeout = 0")
        with closing(sqlite3.connect(tmp_path / "log" / "histories.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            reply = feed(client, answer, "2")
        said = "the histories cannot be written: database is locked; give the label again"
        assert (reply.status_code, reply.json()) == (503, {"error": said})
        assert feed(client, answer, "2").json()["remembered"] is True
        assert [item.label for item in client.service.histories.of("u1")] == ["2"]


def test_too_many_that_wait_are_refused(asking, monkeypatch):
    monkeypatch.setattr("serving.batching.MOST_WAITING", 3)
    with asking() as client:
        assert client.post("/predict", json={"questions": [ask()] * 4}).status_code == 503
        assert client.post("/predict", json={"questions": [ask()] * 3}).status_code == 200


@pytest.mark.slow
def test_whatever_openapi_allows_and_forbids_is_answered_as_it_says(port, tmp_path):
    """schemathesis draws right and wrong requests from OpenAPI: no 5xx, and only what is documented."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    url = f"http://localhost:{port}/openapi.json"
    options = ["--checks", checks, "--max-examples", "40", "--seed", "1", "--phases", "examples,coverage,fuzzing"]
    command = [sys.executable, "-m", "schemathesis.cli", "run", url, *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "generated" in done.stdout
