"""Both pages in a real browser."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from studies.runner import run_study
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
def addresses(home):
    """The two addresses of a running `chamtune ui`; checks that it stops cleanly."""
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "cli", "ui", "--home", str(home)),
            *("--dashboard-port", str(ports[0]), "--mlflow-port", str(ports[1])),
        ],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    lines = [process.stdout.readline().decode() for _ in range(3)]
    assert "Ctrl-C stops both" in lines[2], lines
    yield [line.split()[1] for line in lines[:2]]
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    process.stdout.close()
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
    request = urllib.request.Request(url, method=method, data=b"{}" if method == "POST" else None)
    request.add_header("Content-Type", "application/json")
    if host:
        request.add_header("Host", host)
    if origin:
        request.add_header("Origin", origin)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.mark.timeout(180)
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


@pytest.mark.timeout(180)
def test_mlflow_shows_the_runs_and_their_comparison(home, addresses, page, tmp_path):
    import json

    with urllib.request.urlopen(
        f"{addresses[1]}/api/2.0/mlflow/experiments/get-by-name?experiment_name=watched", timeout=20
    ) as answer:
        experiment = json.load(answer)["experiment"]["experiment_id"]
    page.goto(f"{addresses[1]}/#/experiments/{experiment}/runs")
    page.get_by_text("15 matching runs").wait_for(timeout=60_000)
    page.locator("[class*=ag-row] button").first.click()
    page.get_by_text("trial-0003").first.wait_for(timeout=30_000)
    page.screenshot(path=str(tmp_path / "mlflow.png"))
    request = urllib.request.Request(
        f"{addresses[1]}/api/2.0/mlflow/runs/search",
        data=json.dumps({"experiment_ids": [experiment], "max_results": 50}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        runs = {r["info"]["run_name"]: r["info"]["run_id"] for r in json.load(answer)["runs"]}
    assert {"watched", "baseline", "best", "trial-0000", "trial-0011"} <= set(runs)
    chosen = json.dumps([runs["trial-0001"], runs["trial-0002"]])
    page.goto(f'{addresses[1]}/#/compare-runs?runs={chosen}&experiments=["{experiment}"]')
    page.get_by_text("Comparing 2 Runs").first.wait_for(timeout=60_000)
    page.get_by_text("accuracy").first.wait_for(timeout=30_000)
    page.screenshot(path=str(tmp_path / "compare.png"))


def test_other_hosts_and_origins_are_refused(addresses):
    for address in addresses:
        assert status(address) == 200
        assert status(address, host="evil.example") == 403
    assert status(f"{addresses[0]}/api/studies", origin="http://evil.example", method="POST") == 403


def test_a_taken_port_is_said(home, free_port):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port))
        taken.listen()
        done = subprocess.run(
            [sys.executable, "-m", "cli", "ui", "--home", str(home), "--dashboard-port", str(free_port)],
            capture_output=True,
            text=True,
        )
    assert done.returncode == 69
    assert f"port {free_port} on 127.0.0.1 is taken" in done.stderr
