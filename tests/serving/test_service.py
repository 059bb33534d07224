"""What is remembered: the log, feedback, generations that take over, the shadow, the split."""

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from personalization.deployment import CONFIG
from personalization.errors import DataError, UsageError
from serving.arms import arm_of, sample_ratio
from serving.lines import HASHED
from serving.log import records
from serving.place import Place
from serving.service import Service, Terms
from serving.traffic import read_traffic
from tests.serving.conftest import ask, feed, items, until

LOOK_S = 0.1


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("serving.service.LOOK_S", LOOK_S)


def lines(tmp_path, name="questions"):
    return list(records(tmp_path / "log", name))


@pytest.mark.parametrize("texts", [False, True])
def test_the_log_has_the_shape_of_questions_and_texts_where_they_are_asked_for(asking, tmp_path, texts):
    with asking(texts=texts) as client:
        more = {"user": "u1", "id": "mine", "history": items("2", "2"), "date": "2026-01-02"}
        client.post("/predict", json=ask("a secret lamp", **more))
        client.post("/predict", json=ask("a secret lamp"))
    first, second = lines(tmp_path)
    assert (first["user_id"], first["named"], first["known"], first["answer"], first["date"]) == (
        "u1",
        True,
        2,
        "2",
        "2026-01-02",
    )
    assert (second["named"], second["known"], second["answer"], "date" in second) == (False, 0, "4", False)
    assert first["input"] == second["input"]
    whole = b"".join(path.read_bytes() for path in (tmp_path / "log").glob("*.jsonl")).decode()
    assert ("secret" in whole, "a fan" in whole) == (texts, texts)
    assert first["input"].startswith(HASHED) is not texts
    assert [item["text"] for item in first["profile"]] == (["a fan 0", "a fan 1"] if texts else [])


def test_feedback_is_noted_and_becomes_history(asking, tmp_path):
    with asking(texts=True) as client:
        for number in range(3):
            answer = client.post("/predict", json=ask(f"a lamp {number}", user="u1")).json()
            assert feed(client, answer, "2").json() == {"request": answer["request"], "remembered": True}
        assert client.post("/predict", json=ask("a desk", user="u1")).json()["label"] == "2"
        assert client.post("/predict", json=ask("a desk", user="u1", history=[])).json()["label"] == "4"
        assert client.post("/predict", json=ask("a desk", user="u2")).json()["label"] == "4"
        assert feed(client, answer, "5").status_code == 200
        odd = [feed(client, {"request": "1-0-00000000"}, "2"), feed(client, answer, "7")]
        odd.append(feed(client, {"request": "../../etc"}, "2"))
    assert [reply.status_code for reply in odd] == [404, 422, 422]
    with asking(texts=True) as client:  # a new process has it, the label that came last
        history = client.service.histories.of("u1")
    assert [item.label for item in history] == ["2", "2", "5"]
    traffic = read_traffic(tmp_path / "log")
    assert traffic.gold.tolist() == [1, 1, 4, -1, -1, -1]
    assert traffic.predicted.tolist() == [3, 1, 1, 1, 3, 3]


def test_without_texts_nothing_is_remembered(asking, tmp_path):
    with asking() as client:
        answer = client.post("/predict", json=ask(user="u1")).json()
        assert feed(client, answer, "2").json()["remembered"] is False
        assert client.post("/predict", json=ask(user="u1")).json()["label"] == "4"
    assert not (tmp_path / "log" / "histories.db").exists()
    assert [line["label"] for line in lines(tmp_path, "feedback")] == ["2"]


def test_generations_take_over_under_load_and_none_of_the_answers_is_lost(asking, deploy, write_deployment):
    """Each answer is that of the generation that it names."""
    with asking() as client, ThreadPoolExecutor(4) as pool:
        found, going = [], True

        def client_of(number):
            while going:
                reply = client.post("/predict", json=ask(user=f"u{number}"))
                found.append((reply.status_code, reply.json()["generation"], reply.json()["label"]))

        running = [pool.submit(client_of, number) for number in range(4)]
        for generation in range(2, 5):
            write_deployment(deploy, favourite=1 + generation % 5, generation=generation)
            until(lambda now=generation: client.get("/readyz").json()["generation"] == now)
        going = False
        for one in running:
            one.result()
        assert client.get("/version").json()["generation"] == 4
        assert "chamtune_swaps 3.0" in client.get("/metrics").text
    assert {code for code, _, _ in found} == {200}
    assert {generation: label for _, generation, label in found} == {1: "4", 2: "3", 3: "4", 4: "5"}
    assert {(generation, label) for _, generation, label in found} == {(1, "4"), (2, "3"), (3, "4"), (4, "5")}


@pytest.mark.parametrize("fault", ["no yaml", "a file less", "other labels"])
def test_a_generation_that_cannot_serve_leaves_the_old_one(asking, deploy, write_deployment, fault, caplog):
    with asking() as client:
        if fault == "no yaml":
            (deploy / CONFIG).write_text("{")
        elif fault == "a file less":
            write_deployment(deploy, favourite=1, generation=2, files={"gone.safetensors": "0"})
        else:
            write_deployment(deploy, favourite=1, generation=2, labels=["1", "2", "3", "4", "6"])
        until(lambda: client.get("/readyz").json()["failed"])
        assert client.post("/predict", json=ask()).json()["label"] == "4"
        assert client.get("/readyz").json()["generation"] == 1
        time.sleep(3 * LOOK_S)
        assert "chamtune_generation_failed 1.0" in client.get("/metrics").text
        write_deployment(deploy, favourite=2, generation=3)
        until(lambda: client.get("/readyz").json()["generation"] == 3)
        assert client.get("/readyz").json()["failed"] is None
    assert "generation 1 goes on" in caplog.text


def test_a_folder_that_cannot_be_seen_is_said_and_looked_for_again(asking, deploy, write_deployment, tmp_path, caplog):
    with asking() as client:
        deploy.rename(tmp_path / "away")
        deploy.symlink_to(deploy)
        until(lambda: "symbolic links" in (client.get("/readyz").json()["failed"] or ""))
        assert client.post("/predict", json=ask()).json()["label"] == "4"
        deploy.unlink()
        (tmp_path / "away").rename(deploy)
        write_deployment(deploy, favourite=2, generation=2)
        until(lambda: client.get("/readyz").json()["generation"] == 2)
        assert client.get("/readyz").json()["failed"] is None
    assert "generation 1 goes on, and a new one cannot be seen" in caplog.text


def test_a_log_that_does_not_reach_the_disk_is_said_once(asking, monkeypatch, caplog):
    tried = []

    def broken(_):
        tried.append(None)
        raise OSError(5, "Input/output error")

    with asking() as client:
        monkeypatch.setattr("serving.log.os.fsync", broken)
        client.post("/predict", json=ask())
        until(lambda: len(tried) > 2)
        monkeypatch.undo()
    assert caplog.text.count("what was answered is not on the disk yet: the log cannot be written") == 1


def test_the_shadow_is_logged_never_returned_and_shares_the_pass(asking, other, tmp_path, monkeypatch):
    passes = []
    with asking(other=other) as client:
        backbone = client.service.place.now.deployment.scorer.backbone
        scored = backbone.label_logprobs
        monkeypatch.setattr(backbone, "label_logprobs", lambda *given: passes.append(given) or scored(*given))
        answers = [client.post("/predict", json=ask(f"a lamp {number}", user="u")).json() for number in range(5)]
        until(lambda: len(lines(tmp_path, "shadow")) == 5)
        assert len(passes) == 5
    assert {answer["label"] for answer in answers} == {"4"}
    shadow = lines(tmp_path, "shadow")
    assert [line["of"] for line in shadow] == [answer["request"] for answer in answers]
    assert {line["answer"] for line in shadow} == {"2"}
    assert sorted(read_traffic(tmp_path / "log").shadow) == [0, 1, 2, 3, 4]


def test_a_shadow_that_fails_is_counted_and_the_answer_stands(asking, deploy, other, monkeypatch):
    with asking(other=other) as client:

        def broken(*_):
            raise RuntimeError("broken")

        monkeypatch.setattr(type(client.service), "_shadow", broken)
        assert client.post("/predict", json=ask()).json()["label"] == "4"
        until(lambda: "chamtune_shadow_failures_total 1.0" in client.get("/metrics").text)


def test_users_stay_in_their_arm(asking, other):
    users = [f"u{number}" for number in range(60)]

    def arms():
        with asking(other=other, split=0.5) as client:
            found = [client.post("/predict", json=ask(user=user)).json() for user in users]
        assert all(answer["label"] == {"a": "4", "b": "2"}[answer["arm"]] for answer in found)
        return [answer["arm"] for answer in found]

    first = arms()
    assert 15 < first.count("b") < 45
    assert arms() == first


def test_arms_follow_the_share_and_a_wrong_ratio_is_found():
    many = [arm_of(str(number), "salt", 0.1) for number in range(20_000)]
    share = many.count("b")
    assert abs(share - 2000) < 200
    assert sample_ratio(20_000 - share, share, 0.1) > 0.01
    assert sample_ratio(17_700, 2300, 0.1) < 0.001
    more = [arm_of(str(number), "salt", 0.2) for number in range(20_000)]
    assert all(now == "b" for before, now in zip(many, more, strict=True) if before == "b")


def test_a_log_has_one_server_and_only_its_user_reads_it(asking, deploy, tmp_path):
    with asking(texts=True), pytest.raises(UsageError, match="another server logs there"):
        Service(Place(deploy), Terms(tmp_path / "log"))
    kept = [path for path in (tmp_path / "log").iterdir() if path.name not in (".lock", "about.json")]
    assert len(kept) >= 5
    assert {path.stat().st_mode & 0o077 for path in kept} == {0}
    with asking():
        pass


def test_what_cannot_stand_beside_it_is_refused(deploy, write_deployment, tmp_path):
    place = Place(deploy)
    with pytest.raises(UsageError, match="a split needs the other config"):
        Service(place, Terms(tmp_path / "log", split=0.1))
    other = write_deployment(tmp_path / "other", labels=["1", "2", "3", "4", "6"])
    with pytest.raises(DataError, match="cannot stand beside one"):
        Place(other, None, place.now.deployment)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_kill_9_loses_no_answer_and_no_feedback(deploy, tmp_path, free_port):
    """Whatever a client has been told stands in the log, however the process ended."""
    log, base = tmp_path / "log", f"http://127.0.0.1:{free_port}"
    options = [deploy, "--port", free_port, "--log", log, "--home", tmp_path / "h"]
    command = [sys.executable, "-m", "cli", "serve", *map(str, options)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def post(path, body):
        return httpx2.post(base + path, json=body, timeout=20).raise_for_status().json()

    def up():
        try:
            return httpx2.get(base + "/readyz", timeout=1).status_code == 200
        except httpx2.HTTPError:
            return False

    told, labelled = [], []

    def client(number):
        try:
            while True:
                request = post("/predict", ask(user=f"u{number}"))["request"]
                told.append(request)
                post("/feedback", {"request": request, "label": "3"})
                labelled.append(request)
        except httpx2.HTTPError:  # it was killed before, or within an answer
            return

    try:
        until(up, 300)
        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(client, number) for number in range(4)]
            until(lambda: len(labelled) > 40)
            process.send_signal(signal.SIGKILL)
            for one in running:
                one.result()
    finally:
        process.kill()
        process.wait()
    assert set(told) <= {line["request"] for line in lines(tmp_path)}
    assert set(labelled) <= {line["of"] for line in lines(tmp_path, "feedback")}
    assert len(read_traffic(log).labelled) >= len(labelled)
