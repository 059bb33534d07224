"""The pages as a browser, axe and schemathesis see them."""

import shutil
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta

import optuna
import pytest
import uvicorn

from studies.shown.pages.app import application
from studies.storage import storage_url
from tests.studies.shown.conftest import house_of, odd_studies

CHROMIUM = shutil.which("chromium")
CUT = """() => [...document.querySelectorAll('.chart.fits')].flatMap((chart) => {
  const whole = chart.parentElement.getBoundingClientRect();
  const inside = (box) => box.left >= whole.left && box.right <= whole.right && box.top >= whole.top;
  return [...chart.querySelectorAll('text')].filter((text) => !inside(text.getBoundingClientRect()));
}).map((text) => text.textContent)"""
"""Texts of a chart that its frame cuts off."""


@pytest.fixture
def address(experiments):
    """The pages on a port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(application(house_of(experiments)), port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def served(address):
    """The pages, and a browser."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield address, browser
        browser.close()


@pytest.mark.slow
def test_an_open_page_follows_its_study(served, experiments):
    base, browser = served
    study = optuna.create_study(
        storage=storage_url(experiments, None), study_name="live", direction="minimize", load_if_exists=True
    )
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    page = browser.new_page()
    page.goto(f"{base}/insights?study=live")
    assert page.locator(".head").get_attribute("data-trials") == "3"
    page.locator("#space > summary").click()
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    page.get_by_role("status").get_by_text("New trials").wait_for(timeout=20_000)
    assert page.locator(".head").get_attribute("data-trials") == "5"
    assert page.get_by_role("columnheader", name="values tried").is_visible()
    page.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_at_three_widths_and_by_keyboard(served, scheme):
    base, browser = served
    for width in (1280, 768, 390):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        faults: list[str] = []
        page.on("pageerror", lambda error, faults=faults: faults.append(str(error)))
        page.on("console", lambda said, faults=faults: faults.append(said.text))
        page.goto(f"{base}/")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.get_by_role("link", name="Insights of experiments").press("Enter")
        page.wait_for_url("**/insights?study=experiments")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate(CUT) == []
        value = page.locator("button.value").first
        value.focus()
        tip = value.locator(".tip")
        tip.wait_for(state="visible")
        assert "Raw ratio" in tip.inner_text()
        assert page.locator(".slice:visible").count() > 10
        page.locator("#space > summary").press("Enter")
        assert page.get_by_role("columnheader", name="values tried").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.locator("button, a[href], [tabindex='0']").count() > 40
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert dark == ("rgb(20, 23, 26)" if scheme == "dark" else "rgb(251, 250, 248)")
        assert faults == []
        page.close()


def seen_by(axe, page) -> list[str]:
    """What axe-core finds on a page, gravest and all others: rule, how grave, where."""
    found = axe.run(page).response["violations"]
    return [f"{one['id']} ({one['impact']}): {one['nodes'][0]['target']}" for one in found]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name", [None, "experiments", "mixed", "experiments&study=mixed", "failed", "empty", "nowhere"]
)
def test_axe_finds_nothing(served, experiments, name):
    from axe_playwright_python.sync_playwright import Axe

    base, browser = served
    odd = storage_url(experiments, None)
    if "mixed" not in optuna.get_all_study_names(odd):
        odd_studies(odd)
    for scheme, width in (("light", 1280), ("dark", 390)):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.goto(base if name is None else f"{base}/insights?study={name}")
        assert seen_by(Axe(), page) == [], (scheme, width)
        page.close()


@pytest.mark.slow
def test_axe_sees_a_fault(served):
    from axe_playwright_python.sync_playwright import Axe

    base, browser = served
    page = browser.new_page()
    page.goto(base)
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<main><button></button></main>')")
    assert any(said.startswith("button-name (critical)") for said in seen_by(Axe(), page))
    page.close()


@pytest.mark.slow
def test_whatever_openapi_allows_and_forbids_is_answered_as_it_says(address, tmp_path):
    """schemathesis draws right and wrong requests from OpenAPI: no 5xx, and only what is documented."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    options = ["--checks", checks, "--max-examples", "40", "--seed", "1", "--phases", "examples,coverage,fuzzing"]
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "generated" in done.stdout


@pytest.mark.slow
def test_the_course_is_shown_by_trial_or_by_running_time(served, experiments):
    base, browser = served
    study = optuna.create_study(storage=storage_url(experiments, None), study_name="timed", direction="maximize")
    for i in range(12):
        made = optuna.create_trial(value=float(i))
        made.datetime_start = made.datetime_complete - timedelta(minutes=i)
        study.add_trial(made)
    page = browser.new_page()
    page.goto(f"{base}/insights?study=timed")
    charts = [page.locator(f".course .{name} svg") for name in ("by-trial", "by-time")]
    assert [chart.is_visible() for chart in charts] == [True, False]
    page.get_by_role("radio", name="by running time").check()
    assert [chart.is_visible() for chart in charts] == [False, True]
    assert "minutes that trials ran, in all" in charts[1].text_content()
    page.close()
