"""Answers over HTTP are the deployment's, and what cannot be answered is one line."""

import json
import resource
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.testclient import TestClient

from personalization.data.records import HistoryItem, Question
from personalization.deployment import Deployment
from personalization.errors import UsageError
from serving.app import app_of
from serving.place import Place
from serving.run import DESCRIPTORS, LOCAL, _make_room, is_loopback, named, serve
from serving.service import Service, Terms
from tests.serving.conftest import ask, items, predict, same

FRAME = "What is the score of the following review on a scale of 1 to 5? review: "


def asked(number):
    labels = [str(1 + (number * step) % 5) for step in range(1, number % 4 + 1)]
    return {
        "id": f"q{number}",
        "user": f"u{number % 7}",
        "text": FRAME + f"a lamp {number}",
        "history": [{"text": f"a fan {at}", "label": label} for at, label in enumerate(labels)],
    }


def expected(deploy, asks):
    questions = [
        Question(
            one["id"],
            one["user"],
            one["text"],
            tuple(HistoryItem(f"h{at}", item["text"], item["label"]) for at, item in enumerate(one["history"])),
        )
        for one in asks
    ]
    return Deployment.load(deploy).predict(questions)


def test_one_and_many_and_clients_together_get_the_deployments_answers(asking, deploy):
    asks = [asked(number) for number in range(24)]
    wanted = expected(deploy, asks)
    with asking() as client:
        alone = [client.post("/predict", json=one).json() for one in asks[:4]]
        many = predict(client, asks)
        with ThreadPoolExecutor(8) as pool:
            together = [reply.json() for reply in pool.map(lambda one: client.post("/predict", json=one), asks)]
        text = client.get("/metrics").text
    for found in (alone, many, together):
        for answer, prediction in zip(found, wanted, strict=False):
            assert answer["id"] == prediction.id
            same(answer, prediction)
    names = [answer["request"] for answer in (*alone, *many, *together)]
    assert len(set(names)) == len(names) == 52
    assert 'chamtune_answers_total{arm="a"} 52.0' in text
    assert 'chamtune_label_share{label="4"}' in text
    counted = [float(line.split()[-1]) for line in text.splitlines() if line.startswith("chamtune_label_share{")]
    assert sum(counted) == pytest.approx(1)
    bare = next(float(line.split()[-1]) for line in text.splitlines() if line.startswith("chamtune_without_history"))
    assert bare == pytest.approx(sum(not one["history"] for one in [*asks[:4], *asks, *asks]) / 52)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "the body is no JSON"),
        (b"[" * 100_000, 400, "error parsing the body"),
        (b"{}", 422, "body.text: Field required"),
        (b'{"text": "a", "sex": 1}', 422, "body.sex: Extra inputs are not permitted"),
        (b'{"text": "a", "date": "03/04/2019"}', 422, "body.date: Value error, not a date"),
        (b'{"text": "\\ud800"}', 422, "body.text"),
        (b'{"text": "  "}', 422, "body.text: Value error, empty"),
        (b'{"text": "nul\\u0000nul"}', 422, "body.text: Value error, holds a null byte; remove it"),
        (b'{"text": "a", "user": " "}', 422, "body.user: Value error, empty"),
        (b'{"text": "a", "user": "u\\u0000"}', 422, "body.user: Value error, holds a null byte"),
        (b'{"text": "a", "history": [{"text": "\\t", "label": "4"}]}', 422, "body.history.0.text: Value error, empty"),
        (b'{"text": "a", "history": [{"text": "b", "label": " "}]}', 422, "body.history.0.label: Value error, empty"),
        (b'{"questions": []}', 422, "body.questions: List should have at least 1 item"),
        (b'{"text": "Which tag? tags: [comedy, drama] description: a film"}', 422, "a question of LaMP_2"),
        (b'{"text": "%s"}' % (b"a" * 5000), 413, "a body has at most 4000 bytes"),
    ],
)
def test_what_cannot_be_answered_is_one_line(asking, body, status, said):
    with asking(limits={"most_bytes": 4000} if status == 413 else None) as client:
        reply = client.post("/predict", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == status
    assert said in reply.json()["error"]
    assert "\n" not in reply.json()["error"]


def test_history_items_that_count_for_nothing_are_said(asking):
    """A label that is the same number as a listed one is that label, as in files."""
    histories = {"listed": items(*"222"), "a number": items("2.0", "02", "2"), "odd": items("two", "2 stars", "TWO")}
    with asking() as client:
        found = {name: client.post("/predict", json=ask(history=own)).json() for name, own in histories.items()}
        bare = client.post("/predict", json=ask(history=[{"text": "a fan"}])).json()
        text = client.get("/metrics").text
        told = client.get("/openapi.json").json()["components"]["schemas"]["Answer"]["properties"]["uncounted"]
    assert {name: one["uncounted"] for name, one in found.items()} == {"listed": 0, "a number": 0, "odd": 3}
    assert found["listed"]["log_probs"] == found["a number"]["log_probs"] != found["odd"]["log_probs"]
    assert (found["odd"]["prior"], bare["uncounted"]) == (bare["prior"], 0)
    assert "chamtune_uncounted_items_total 3.0" in text
    assert "none of the labels" in told["description"]


def test_a_body_without_a_length_is_limited_too(asking):
    with asking(limits={"most_bytes": 4000}) as client:
        reply = client.post("/predict", content=(b"a" * 1000 for _ in range(10)))
    assert (reply.status_code, reply.json()) == (
        413,
        {"error": "a body has at most 4000 bytes; send fewer questions at a time"},
    )


def test_a_foreign_host_and_a_missing_token_are_refused(asking):
    with asking(token="t0k") as client:
        assert client.get("/healthz", headers={"host": "evil.example"}).status_code == 400
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.post("/predict", json={"text": "a"}).status_code == 401
        assert client.get("/metrics", headers={"authorization": "Bearer t0"}).status_code == 401
        assert client.get("/metrics", headers={"authorization": "Bearer t0k"}).status_code == 200
    with asking(token="geheimnis-ä") as client:
        given = "Bearer geheimnis-ä".encode()
        assert client.get("/metrics", headers={b"authorization": given}).status_code == 200


def test_nobody_listens_to_the_world_without_a_token(monkeypatch):
    monkeypatch.delenv("CHAMTUNE_TOKEN", raising=False)
    with pytest.raises(UsageError, match=r"on 0\.0\.0\.0 others than this machine may ask"):
        serve(None, "0.0.0.0", 0)
    assert all(is_loopback(host) for host in ("127.0.0.1", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "example.org"))


def test_a_pattern_that_is_none_is_refused_and_an_address_of_six_is_named_in_brackets(deploy, tmp_path):
    for odd in ("a*b", "*b", "**", "*.b*"):
        with pytest.raises(UsageError, match=r"a \* stands alone, or leads as in \*\.example\.org; name the host"):
            serve(None, "127.0.0.1", 0, (odd,))
    assert (named("::1"), named("127.0.0.1")) == ("[::1]", "127.0.0.1")
    app = app_of(Service(Place(deploy), Terms(tmp_path / "log")), LOCAL)
    with TestClient(app, base_url="http://[::1]:8000") as client:
        assert client.get("/healthz").status_code == 200


def test_there_are_more_descriptors_than_connections():
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, limits[0]), limits[1]))
    try:
        _make_room()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(DESCRIPTORS, limits[1]), limits[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_it_says_what_it_is_and_how_it_is_asked(asking):
    with asking() as client:
        version = client.get("/version").json()
        ready = client.get("/readyz").json()
        schema = client.get("/openapi.json").json()
    assert (version["generation"], version["task"], version["other"]) == (1, "LaMP_3", None)
    assert len(version["model"]) == 64
    assert ready == {"status": "ready", "generation": 1, "failed": None}
    assert set(schema["paths"]) == {"/predict", "/feedback", "/healthz", "/readyz", "/version", "/metrics"}
    example = schema["components"]["schemas"]["Ask"]["examples"][0]
    with asking() as client:
        assert client.post("/predict", content=json.dumps(example)).status_code == 422  # no content type
        assert client.post("/predict", json={**example, "text": "a"}).status_code == 200
