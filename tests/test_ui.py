"""Both pages in a real browser."""

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import httpx2
import optuna
import pytest

from personalization.errors import UnavailableError
from studies.runner import run_study
from studies.shown import ui
from studies.shown.dashboard import dashboard
from studies.study import find_study

CHROMIUM = shutil.which("chromium")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_model, small_data):
    """A home with a study of which some trials are infeasible, sent to MLflow."""
    from studies.spec import parse_spec

    folder = tmp_path_factory.mktemp("ui") / "home"
    raw = {
        "name": "watched",
        "data": {"path": str(small_data)},
        "model": {"path": str(tiny_model)},
        "constraints": {"entropy": ">= 1.0", "top1_share": "<= 0.7"},
        "space": {"beta": [0.0, 1.0], "source": "batch"},
        "sampler": "random",
        "trials": 12,
    }
    result = run_study(parse_spec(raw, "test"), folder)
    assert result.waiting == 0
    assert 0 < result.feasible < 12
    return folder


@pytest.fixture(scope="module")
def addresses(home, tmp_path_factory):
    """Dashboard, MLflow, the study's page and the start page of a running `chamtune ui`.

    It is started where modules of the same names lie. Checks that it stops cleanly.
    """
    ports = []
    for _ in range(3):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    here = tmp_path_factory.mktemp("here")
    for module in ("tracking/__init__.py", "studies/__init__.py", "mlflow.py", "uvicorn.py"):
        (here / module).parent.mkdir(exist_ok=True)
        (here / module).write_text("import pathlib\npathlib.Path(__file__).with_suffix('.ran').touch()\n")
    process = subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "cli", "ui", "--home", str(home)),
            *("--dashboard-port", str(ports[0]), "--mlflow-port", str(ports[1]), "--port", str(ports[2])),
        ],
        stdout=subprocess.PIPE,
        start_new_session=True,
        cwd=here,
    )
    lines = [process.stdout.readline().decode() for _ in range(5)]
    assert "Ctrl-C stops all" in lines[4], lines
    yield [line.split()[-3 if "  of " in line else -1] for line in (*lines[1:4], lines[0])]
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    process.stdout.close()
    assert list(here.rglob("*.ran")) == []
    for port in ports:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is missing; .ci/run installs it")
        pytest.skip("no chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1500, "height": 1100})
    yield page
    page.close()


def status(url: str, host: str | None = None, origin: str | None = None, method: str = "GET") -> int:
    told = {"Content-Type": "application/json", "Host": host, "Origin": origin}
    headers = {name: value for name, value in told.items() if value}
    body = b"{}" if method == "POST" else None
    return httpx2.request(method, url, headers=headers, content=body, follow_redirects=True, timeout=10).status_code


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_dashboard_marks_feasibility_and_names_the_best_feasible_trial(home, addresses, page, tmp_path):
    study = find_study("watched", home, None)
    best = study.best_trial
    page.goto(f"{addresses[0]}/dashboard/")
    page.get_by_text("watched").first.wait_for(timeout=30_000)
    page.goto(f"{addresses[0]}/dashboard/studies/1")
    page.get_by_text(f"Best Trial (number={best.number})").wait_for(timeout=30_000)
    page.get_by_text("Infeasible").first.wait_for(timeout=30_000)
    page.screenshot(path=str(tmp_path / "dashboard.png"))
    detail = page.evaluate("fetch('/api/studies/1').then(r => r.json())")
    assert [t["number"] for t in detail["best_trials"]] == [best.number]
    for shown, stored in zip(detail["trials"], study.trials, strict=True):
        assert shown["constraints"] == [stored.constraints[name] for name in sorted(stored.constraints)]
    assert any(max(t["constraints"]) > 0 for t in detail["trials"])


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_mlflow_shows_the_runs_and_their_comparison(home, addresses, page, tmp_path):
    refused = []
    page.on("response", lambda one: refused.append(one) if one.status == 404 and "off" in one.text() else None)
    page.goto(addresses[2])
    page.get_by_text("15 matching runs").wait_for(timeout=60_000)
    for metric in ("accuracy", "entropy", "top1_share"):
        page.locator(f"[role=columnheader][col-id='metrics.`{metric}`']").wait_for(timeout=30_000)
    page.get_by_text("trial-0003").first.wait_for(timeout=30_000)
    page.screenshot(path=str(tmp_path / "mlflow.png"))
    assert page.locator("[data-assistant-ui]:visible").count() == 0
    assert page.get_by_text("Welcome to MLflow Assistant").count() == 0
    assert page.get_by_text("this is off in the MLflow").count() == 0
    experiment = addresses[2].partition("experiments/")[2].partition("/")[0]
    wanted = {"experiment_ids": [experiment], "max_results": 50}
    found = httpx2.post(f"{addresses[1]}/api/2.0/mlflow/runs/search", json=wanted, timeout=20).json()["runs"]
    runs = {run["info"]["run_name"]: run["info"]["run_id"] for run in found}
    assert {"watched", "baseline", "best", "trial-0000", "trial-0011"} <= set(runs)
    chosen = json.dumps([runs["trial-0001"], runs["trial-0002"]])
    page.goto(f'{addresses[1]}/#/compare-runs?runs={chosen}&experiments=["{experiment}"]')
    page.get_by_text("Comparing 2 Runs").first.wait_for(timeout=60_000)
    page.get_by_text("accuracy").first.wait_for(timeout=30_000)
    page.screenshot(path=str(tmp_path / "compare.png"))
    assert [one.url for one in refused] == []


@pytest.mark.slow
def test_other_hosts_and_origins_are_refused(addresses):
    for address in addresses[:2]:
        assert status(address) == 200
        assert status(address, host="evil.example") == 403
    assert status(f"{addresses[0]}/api/studies", origin="http://evil.example", method="POST") == 403
    create = f"{addresses[1]}/api/2.0/mlflow/experiments/create"
    assert status(create, origin="http://localhost:99", method="POST") == 403
    assert status(create, origin=addresses[1], method="POST") == 400  # reached, and the request says nothing


@pytest.mark.slow
def test_a_malformed_host_is_a_bad_request(addresses):
    for host in ("[::1", "[1.2.3.4]:80", "[x]"):
        assert status(f"{addresses[0]}/api/studies", host=host) == 400


@pytest.mark.slow
def test_the_dashboard_only_shows(addresses, home):
    assert status(f"{addresses[0]}/api/studies/1", method="DELETE") == 403
    assert status(f"{addresses[0]}/api/studies/1", origin=addresses[0], method="DELETE") == 403
    assert find_study("watched", home, None).trials


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        "/ajax-api/3.0/mlflow/assistant/sessions/x",
        "/ajax-api/3.0/mlflow/gateway/secrets/list",
        "/ajax-api/2.0/mlflow/gateway-proxy?gateway_path=x",
        "/gateway/mlflow/v1/models",
        "//gateway/mlflow/v1/models",
        "/api/3.0/mlflow/mcp-servers",
        "/ajax-api/3.0/jobs/x",
    ],
)
def test_mlflow_has_no_assistant_gateway_jobs_or_mcp(addresses, path):
    assert status(addresses[1] + path) == status(addresses[1] + path, method="POST") == 404


@pytest.mark.slow
def test_what_the_page_asks_of_closed_parts_is_answered_with_nothing(addresses):
    for what in (
        "3.0/mlflow/assistant/config",
        "3.0/mlflow/assistant/providers",
        "2.0/mlflow/gateway-proxy?gateway_path=api%2F2.0%2Fendpoints%2F",
    ):
        asked = f"{addresses[1]}/ajax-api/{what}"
        assert (status(asked), status(asked, method="POST"), status(asked, method="PUT")) == (200, 404, 404)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_every_route_of_these_parts_is_closed_and_no_other(monkeypatch):
    """Asks the installed MLflow for its routes, so that a new one is noticed."""
    from mlflow.server import app, fastapi_app

    from tracking.mlflow_page import CLOSED

    routers = (fastapi_app.assistant_router, fastapi_app.gateway_router, fastapi_app.job_api_router)
    closed = {route.path for router in routers for route in router.routes}
    closed |= set(fastapi_app.get_mcp_server_api_route_prefixes())
    rules = {rule.rule for rule in app.url_map.iter_rules()}
    closed |= {rule for rule in rules if "/gateway" in rule or "/jobs" in rule}
    assert len(closed) > 60
    assert [path for path in closed if not CLOSED.match(path)] == []
    needed = {rule for rule in rules if "/experiments/" in rule or "/runs/" in rule or "/model-versions/" in rule}
    assert len(needed) > 30
    assert [path for path in needed if CLOSED.match(path)] == []


def asked(app, method: str = "GET", path: str = "/api/studies", **headers) -> tuple[str, bytes]:
    """What a WSGI application answers: (status, body)."""
    environ = {"SERVER_NAME": "127.0.0.1", "SERVER_PORT": "80", "HTTP_HOST": "127.0.0.1", **headers}
    environ |= {"REQUEST_METHOD": method, "PATH_INFO": path, "wsgi.input": io.BytesIO(b"{}"), "CONTENT_LENGTH": "2"}
    environ |= {"wsgi.errors": sys.stderr, "wsgi.url_scheme": "http", "CONTENT_TYPE": "application/json"}
    said: list[str] = []
    body = b"".join(app(environ, lambda status, *_: said.append(status)))
    return said[0], body


@pytest.fixture
def two_goals(tmp_path) -> str:
    """A storage with a study of two goals whose best trials are infeasible."""
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    study = optuna.create_study(storage=url, study_name="front", directions=["maximize", "minimize"])
    for values, broken in (((0.9, 0.1), 1.0), ((0.5, 0.5), -1.0), ((0.4, 0.4), 0.0), ((0.3, 0.9), -1.0)):
        study.add_trial(optuna.create_trial(values=values, constraints={"b": -2.0, "a": broken}))
    return url


@pytest.mark.slow
def test_the_dashboard_draws_the_feasible_front(two_goals):
    for _ in range(2):  # a second application in one process shows the same
        app = dashboard(two_goals)
    detail = json.loads(asked(app, path="/api/studies/1")[1])
    assert [trial["number"] for trial in detail["best_trials"]] == [1, 2]
    shown = [[broken, -2.0] for broken in (1.0, -1.0, 0.0, -1.0)]
    assert [trial["constraints"] for trial in detail["trials"]] == shown


@pytest.mark.slow
def test_only_with_write_does_the_dashboard_change_studies_and_for_its_own_page(two_goals):
    shows, writes = dashboard(two_goals), dashboard(two_goals, write=True)
    assert asked(shows, "DELETE", "/api/studies/1")[0].startswith("403")
    assert asked(writes, "DELETE", "/api/studies/1", HTTP_ORIGIN="http://localhost:1")[0].startswith("403")
    assert optuna.get_all_study_names(two_goals) == ["front"]
    assert asked(writes, "DELETE", "/api/studies/1", HTTP_ORIGIN="http://127.0.0.1")[0].startswith("204")
    assert optuna.get_all_study_names(two_goals) == []


@pytest.mark.parametrize("store", ["postgresql://user:s3cret@host/runs", "http://user:s3cret@host:5000"])
def test_no_password_stands_in_the_arguments_of_the_servers(tmp_path, monkeypatch, store):
    started, start = [], subprocess.Popen

    def recorded(arguments, env, **rest):
        started.append((arguments, env))
        return start(["true"], env=env, **rest)

    monkeypatch.setattr(ui.subprocess, "Popen", recorded)
    monkeypatch.setattr(ui, "tracked_studies", lambda *_: [])
    monkeypatch.setattr(ui, "_check_free", lambda *_: None)
    storage = "postgresql+psycopg://user:s3cret@host/studies"
    with pytest.raises(UnavailableError, match="server ended with 0"):
        ui.serve(tmp_path, storage, store, (1, 2, 3), "studies.shown.pages", lambda _: None)
    assert len(started) == (2 if store.startswith("http") else 3)
    for arguments, environment in started:
        assert "s3cret" not in " ".join(arguments)
        assert (environment["CHAMTUNE_STORAGE"], environment["MLFLOW_BACKEND_STORE_URI"]) == (storage, store)


@pytest.mark.slow
def test_a_taken_port_is_said(home, free_port):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port))
        taken.listen()
        done = subprocess.run(
            [sys.executable, "-P", "-m", "cli", "ui", "--home", str(home), "--dashboard-port", str(free_port)],
            capture_output=True,
            text=True,
        )
    assert done.returncode == 69
    assert f"port {free_port} on 127.0.0.1 is taken" in done.stderr
