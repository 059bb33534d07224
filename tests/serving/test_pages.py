"""The page about a server: what it says of a log, what it refuses, how it looks to a browser."""

import html
import json
import shutil

import pytest
from fastapi.testclient import TestClient

from serving.pages import drawing
from serving.pages.app import application
from serving.pages.logs import Logs
from studies.shown.pages.house import House
from studies.storage import storage_url
from tests.serving.conftest import ask, feed, on_a_port, predict

CHROMIUM = shutil.which("chromium")


def pages_of(home, *further, url=None):
    house = House(home, url or storage_url(home, None))
    return application(house, Logs(house, further))


def client_of(home, *further, url=None):
    return TestClient(pages_of(home, *further, url=url), base_url="http://127.0.0.1")


def converse(client, users=30, label="4", of=4):
    """Each of some users asks `of` questions, which get this label."""
    asks = [ask(f"a lamp {number}", user=f"u{number % users}") for number in range(of * users)]
    for answer in predict(client, asks):
        feed(client, answer, label)


@pytest.fixture
def logged(asking, other, tmp_path):
    """The log of a deployment that answers 4 where 4 is right, beside a shadow that answers 2."""
    with asking(other=other) as client:
        converse(client)
    return tmp_path / "log"


def test_a_home_that_serves_nothing_says_how_to_begin(tmp_path):
    client = client_of(tmp_path)
    page = client.get("/served")
    assert page.status_code == 200
    assert f"chamtune serve deploy --home {tmp_path}" in page.text
    assert '<a href="/served">Served</a>' in client.get("/").text
    assert client.get("/monitor?log=gone").status_code == 404
    bare = client.get("/monitor")
    assert (bare.status_code, bare.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "Choose a log of a server" in bare.text
    assert client.get("/api/monitor?log=gone").json()["detail"].startswith("no log 'gone'")


def test_logs_of_one_name_are_told_apart_and_what_cannot_be_read_is_left_out(logged, deploy, tmp_path):
    for name in ("twin", "broken"):
        shutil.copytree(logged, tmp_path / name / "log")
    (tmp_path / "broken" / "log" / "about.json").write_text("[")
    folders = logged, tmp_path / "twin" / "log", tmp_path / "broken" / "log", logged
    client = client_of(tmp_path / "home", *folders)
    assert {row["log"] for row in client.get("/api/served").json()} == {"log", "twin-log"}
    (deploy / "deploy.yaml").write_text("no config")
    rows = client.get("/api/served").json()
    assert [row["generation"] for row in rows] == [None, None]


def test_a_log_without_an_answer_is_told(asking, tmp_path):
    with asking():
        pass
    page = client_of(tmp_path / "home", tmp_path / "log").get("/monitor?log=log")
    assert page.status_code == 200
    assert "nothing was asked yet" in page.text


def test_the_page_says_what_monitoring_says(logged, tmp_path, monkeypatch):
    client = client_of(tmp_path / "home", logged)
    told = client.get("/api/monitor?log=log").json()
    page = client.get("/monitor?log=log").text
    assert (told["answers"], told["labelled"], told["generation"]) == (120, 120, 1)
    assert told["comparison"]["verdict"] == "better"
    assert f"<strong>better</strong>: accuracy of this one minus <code>{tmp_path / 'other'}</code> +1.000" in page
    assert "A point is of about 10 answers" in page
    assert told["faults"] == ["entropy >= 0.5 is broken"]
    assert "entropy &gt;= 0.5 is broken" in page
    assert "It is the first generation, and none stands before it." in page
    assert "--rollback" not in page
    assert f">{told['calibration']['state']}</span>" in page
    drift = {"what": "x", "seen_at": told["last"], "since": told["first"], "before": 1, "after": 2}
    changed = {**told, "generation": 2, "folder": "/logs of mine", "drift": [drift]}
    monkeypatch.setattr("serving.pages.logs.Logs.report", lambda *_: changed)
    commands = html.unescape(
        client_of(tmp_path / "home", logged, url="sqlite:////else.db").get("/monitor?log=log").text
    )
    begin = f"chamtune monitor '/logs of mine' --home {tmp_path / 'home'}"
    assert f"<code>{begin} --storage sqlite:////else.db --rollback</code>" in commands
    assert f"<code>{begin} --retune</code>" in commands
    monkeypatch.undo()
    assert [part["accuracy"] for part in told["parts"]] == [1.0] * 12
    assert {part["constraints"]["entropy"] for part in told["parts"]} == {0.0}
    assert told["looks"][-1]["low"] == pytest.approx(told["comparison"]["interval"][0])
    assert all(look["low"] <= look["mean"] <= look["high"] for look in told["looks"])
    assert "No user is known to lose" in page
    row = client.get("/api/served").json()[0]
    assert (row["log"], row["generation"], row["state"]) == ("log", 1, told["state"])


def test_times_are_said_to_be_utc(logged, tmp_path):
    client = client_of(tmp_path / "home", logged)
    last = client.get("/api/served").json()[0]["last"]
    assert f"{last[:16].replace('T', ' ')} UTC</time>" in client.get("/served").text
    assert (
        f'<time datetime="{client.get("/api/monitor?log=log").json()["last"]}">' in client.get("/monitor?log=log").text
    )


def test_what_is_broken_lately_stands_beside_what_holds_over_all(logged, tmp_path, monkeypatch):
    """As a report says it: since a drift, it is a fault; in the newest answers, a doubt."""
    of = {"metric": "top1_share", "bound": "<= 0.55", "value": 0.23, "interval": [0.2, 0.3], "state": "holds"}
    lately = {"since": "2026-11-29T10:43:53+00:00", "answers": 200, "value": 0.79, "interval": [0.6, 0.9]}
    for drifted, tag, verdict in (
        (True, "broken since 2026-11-29 10:43 UTC", "top1_share &lt;= 0.55 is broken since 2026-11-29 10:43 UTC"),
        (False, "broken in the newest 200 answers", "the newest 200 answers break top1_share &lt;= 0.55"),
    ):
        one = {**of, "lately": {**lately, "state": "broken", "drifted": drifted}}
        monkeypatch.setattr("serving.monitor.constraints", lambda *_, one=one: [one])
        page = client_of(tmp_path / "home", logged).get("/monitor?log=log").text
        assert '<span class="tag good">holds over all</span>' in page
        assert f'<span class="tag bad">{tag}</span>' in page
        assert verdict in page
        assert "Nothing is broken" not in page
        assert ("<strong>Broken:</strong>" in page) == drifted


def test_a_report_follows_the_log_and_rests_where_it_took_long(logged, tmp_path, monkeypatch):
    house = House(tmp_path / "home", storage_url(tmp_path / "home", None))
    logs = Logs(house, [logged])
    before = logs.report("log")
    assert logs.report("log") is before
    line = next(logged.glob("questions-*")).read_text().splitlines()[0]
    with next(logged.glob("questions-*")).open("a") as file:
        file.write(line + "\n")
    assert logs.state("log") != before["state"]
    assert logs.report("log") is before  # not before ten times its own seconds
    monkeypatch.setattr("serving.pages.logs.REST", 0.0)
    assert logs.report("log")["answers"] == 121


def test_users_are_escaped_and_nothing_is_written(asking, other, tmp_path):
    with asking(other=other) as client:
        asks = [ask(f"a lamp {n}", user=f"<script>{n}</script>") for n in range(40) for _ in range(4)]
        for number, answer in enumerate(predict(client, asks)):
            feed(client, answer, "2" if number < 80 else "4")
    client = client_of(tmp_path / "home", tmp_path / "log")
    page = client.get("/monitor?log=log").text
    assert "&lt;script&gt;0&lt;/script&gt;" in page
    assert "<script>0" not in page
    for method in ("POST", "PUT", "DELETE"):
        assert client.request(method, "/monitor?log=log").status_code == 405
    assert client.get("/monitor?log=log", headers={"Host": "evil.example"}).status_code == 400


def test_a_deployment_that_is_gone_is_said(logged, deploy, tmp_path):
    shutil.rmtree(deploy)
    client = client_of(tmp_path / "home", logged)
    assert "is not there any more" in client.get("/monitor?log=log").text
    assert client.get("/api/served").json()[0]["generation"] is None
    assert "gone" in client.get("/served").text


def test_figures_keep_their_ends_and_their_gaps():
    kept = {"estimate": 0.5, "constraints": {"entropy": 1.0}}
    parts = [
        {**kept, "end": end, "accuracy": accuracy, "generations": [1 + (end > 20)]}
        for end, accuracy in ((10, 0.4), (20, None), (30, 0.6))
    ]
    drawn = drawing.accuracy(parts)
    assert drawn["accuracy"].count("M") == 2
    assert drawn["estimate"].count("M") == 1
    assert [swap["generation"] for swap in drawn["swaps"]] == [2]
    assert drawing.accuracy(parts[:1]) is None
    one = {"metric": "entropy", "bound": ">= 0.6", "value": 1.0, "interval": [0.9, 1.1]}
    placed = drawing.bound(one)
    assert 0 < placed["edge"] < placed["low"] < placed["value"] < placed["high"] < 100
    assert drawing.strip(parts, one)["edge"] == 22.0
    looks = [{"labels": n, "mean": 0.1, "low": 0.1 - 1 / n, "high": 0.1 + 1 / n} for n in (2, 20, 200)]
    band = drawing.sequence(looks, 0.02)
    assert band["above"] < band["zero"] < band["below"]
    assert band["band"].endswith("Z")


@pytest.fixture
def served(asking, other, tmp_path):
    """The pages on a port, a browser, and a client of the server that they are of."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    from playwright.sync_api import sync_playwright

    with asking(other=other) as client:
        converse(client)
        with on_a_port(pages_of(tmp_path / "home", tmp_path / "log")) as port, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            yield f"http://127.0.0.1:{port}", browser, client
            browser.close()


@pytest.mark.slow
def test_in_a_browser_at_three_widths_by_keyboard_and_as_it_goes_on(served, monkeypatch):
    monkeypatch.setattr("serving.pages.logs.REST", 0.0)
    base, browser, client = served
    for scheme, paper in (("light", "rgb(251, 250, 248)"), ("dark", "rgb(20, 23, 26)")):
        for width in (1280, 768, 390):
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            faults: list[str] = []
            page.on("pageerror", lambda error, faults=faults: faults.append(str(error)))
            page.on("console", lambda said, faults=faults: faults.append(said.text))
            page.goto(f"{base}/")
            page.get_by_role("link", name="Served", exact=True).press("Enter")
            page.wait_for_url("**/served")
            page.get_by_role("link", name="log", exact=True).press("Enter")
            page.wait_for_url("**/monitor?log=log")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == paper
            assert page.get_by_role("region", name="Difference over the labels").is_visible()
            page.get_by_role("link", name="Drift").press("Enter")
            assert page.evaluate("location.hash") == "#drift"
            assert faults == []
            page.close()
    page = browser.new_page()
    page.goto(f"{base}/monitor?log=log")
    before = page.locator(".facts dd").first.inner_text()
    converse(client, of=1)
    page.get_by_role("status").get_by_text("New answers").wait_for(timeout=30_000)
    assert (before, page.locator(".facts dd").first.inner_text()) == ("120", "150")
    assert json.loads(page.request.get(f"{base}/api/monitor?log=log").text())["answers"] == 150
    page.close()
