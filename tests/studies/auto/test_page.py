"""The page of a race: what it says, that it escapes what comes from data, and how it looks in a browser."""

import shutil
from pathlib import Path

import pytest

from studies.auto import charts
from studies.auto.page import html, markdown, next_steps

CHROMIUM = shutil.which("chromium")
WHOLE = "[...document.querySelectorAll('pre')].every(lines => lines.scrollWidth <= lines.clientWidth)"
HERE = f" --home '{Path('a home').resolve()}'"
TEST = {"delta": 0.1, "interval": [0.02, 0.18], "p_value": 0.01}


def arm(name, gain, fate, **more):
    measured = {
        "accuracy": 0.5 + (gain or 0),
        "accuracy_by_user": 0.5,
        "macro_f1": 0.4,
        "nll": 1.2,
        "interval": [(gain or 0) - 0.05, (gain or 0) + 0.05],
        "users_better": 5,
        "users_worse": 2,
        "users_equal": 3,
        "about_ms": 12.5,
        "judged_on": "tune and select",
        "baseline_accuracy": 0.4,
        "select": {"delta": 0.08, "p_corrected": 0.04, "personal": TEST},
    }
    row = {
        "arm": name,
        "study": f"race.{name}",
        "says": f"what {name} does",
        "trials": 20,
        "seconds": 30.0,
        "gain": gain,
        "fate": fate,
    }
    return {**row, **(measured if gain is not None else {"select": None}), **more}


def found_of(**changes):
    found = {
        "name": "race",
        "promoted": True,
        "reason": "accuracy better by +0.100, p = 0.0010 < 0.03",
        "leader": "head",
        "study": "race.head",
        "params": {"level": "user", "c": 0.012345},
        "minutes": 10.0,
        "epochs": 2,
        "spent_s": 431.0,
        "metric": "accuracy",
        "model": "minilm",
        "tracked": True,
        "users": {"tune": 30, "select": 10, "confirm": 60},
        "questions": {"tune": 90, "select": 30, "confirm": 180},
        "baseline": {"accuracy": 0.4, "macro_f1": 0.3, "nll": 1.5, "accuracy_by_user": 0.41},
        "arms": [
            arm("head", 0.1, "promoted"),
            arm("similar", 0.06, "out: cannot overtake head any more"),
            arm("lora", None, "not afforded: a first trial takes about 5 min, of 60 s left", trials=0),
        ],
        "gains": [{"at_s": 30.0, "gain": 0.06, "best": 0.06}, {"at_s": 60.0, "gain": 0.1, "best": 0.1}],
        "impact": {
            "counts": [0, 0, 1, 0, 2, 5, 1, 1, 0, 0],
            "edges": [round(-1 + 0.2 * i, 2) for i in range(11)],
            "unchanged": 7,
            "losing": [{"user": "<script>alert(1)</script>", "gain": -0.5, "questions": 4, "helped_by": "similar"}],
        },
        "routing": {"one_arm": 0.1, "oracle": 0.2, "routing": {"gain": 0.0, "interval": [-0.01, 0.01], "moved": 0.0}},
        "confirm": {
            "n": 180,
            "users": 60,
            "baseline_accuracy": 0.4,
            "accuracy": 0.5,
            "delta_accuracy": 0.1,
            "ci95": [0.02, 0.18],
            "p_accuracy": 0.001,
            "alpha": 0.03,
            "use": 1,
            "parts": {"by_question": {"gain": TEST, "general": TEST, "personal": TEST}},
            "cost": {"cost_ms": 12.0, "baseline_ms": 8.0, "user_bytes": 0, "training_s": 1.0},
            "references": {"prior alone": {"before": 0.45, "delta": 0.05, "interval": [0.0, 0.1], "p_value": 0.05}},
        },
        "cold_start": {
            "rows": [
                {"items": items, "accuracy": 0.4 + items / 50, "interval": [0.35 + items / 50, 0.45 + items / 50]}
                for items in (0, 1, 2, 4)
            ]
        },
        **changes,
    }
    return {**found, "next": next_steps(found, Path("deploy"), HERE)}


def test_the_page_says_what_was_found_and_what_to_do():
    page = html(found_of())
    for said in (
        "head is worth it.",
        "accuracy rises from 0.400 to 0.500",
        "+0.100 of it is personal",
        "not afforded: a first trial takes about 5 min",
        "no reason to",
        "That is an oracle",
        f"chamtune predict --config {Path('deploy').resolve()}",
        "More minutes would buy: lora, trainings of 3 epochs instead of 2.",
        "0.01235",
        f"chamtune sync race.head{HERE}\nchamtune sync race.similar{HERE}".replace("'", "&#39;"),
    ):
        assert said in page
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_an_arm_on_fewer_users_is_told_apart():
    apart = arm("lora", 0.3, "raced to the end", judged_on="select", baseline_accuracy=0.335)
    whole, with_fewer = found_of(), found_of(arms=[arm("head", 0.1, "promoted"), apart])
    for said in ("over 0.335, on select users alone", "hollow: on select users alone"):
        assert said in html(with_fewer)
        assert said not in html(whole)
    assert html(with_fewer).count('class="hollow"') == 1
    assert [line.split(" | ")[0] for line in markdown(with_fewer).splitlines() if "(select users alone)" in line] == [
        "| lora"
    ]


def test_users_in_whom_nothing_changes_are_no_winners():
    drawn = charts.by_gain([0] * 10, [round(-1 + 0.2 * i, 2) for i in range(11)], 7)
    assert "no change: 7 users" in drawn
    assert drawn.count("<rect") == 11


def test_without_a_curve_the_page_says_what_makes_it():
    told = f"chamtune promote race.head --out {Path('deploy').resolve()}{HERE}".replace("'", "&#39;")
    assert told in html(found_of(cold_start=None))
    assert told not in html(found_of())


def test_the_page_says_that_what_was_confirmed_had_learned_anew():
    confirm = found_of()["confirm"]
    assert "learned anew" in html(found_of(confirm={**confirm, "refit": True}))
    assert "learned anew" not in html(found_of(confirm=confirm))


def test_without_a_winner_the_page_says_why():
    refused = found_of(promoted=False, reason="no arm does better", confirm=None, cold_start=None, impact=None)
    page = html(refused)
    assert "Nothing was promoted." in page
    assert "No arm does better." in page
    assert "The confirm users were not looked at." in page
    assert "chamtune promote race.head" in page
    assert html(found_of(arms=[arm("lora", None, "failed: no items")], impact=None, routing=None))


def test_markdown_has_a_row_for_every_arm():
    text = markdown(found_of())
    assert [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")] == [
        "| arm",
        "| head",
        "| similar",
        "| lora",
    ]


def test_charts_keep_what_they_draw_inside():
    for drawn in (
        charts.over_time([1, 2], [-0.1, 0.3]),
        charts.by_arm(["a"], [-0.2], [[-0.4, 0.1]], [False]),
        charts.by_items(["0", "all"], [0.4, 0.4], [[0.4, 0.4], [0.4, 0.4]]),
    ):
        assert "nan" not in drawn
        assert drawn.startswith("<svg viewBox")
    assert charts.over_time([], []) == ""


@pytest.fixture
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.mark.parametrize("look", [{"color_scheme": "light"}, {"color_scheme": "dark"}, {"media": "print"}])
def test_it_can_be_read_at_three_widths_in_the_dark_and_printed(tmp_path, browser, look):
    from axe_playwright_python.sync_playwright import Axe

    place = tmp_path / "auto.html"
    place.write_text(html(found_of()), encoding="utf-8")
    for width in (1280, 718, 390):  # 718: what an A4 page leaves between a printer's margins
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.emulate_media(**look)
        said = []
        page.on("console", lambda line, said=said: said.append(line.text))
        page.on("request", lambda asked, said=said: said.append(asked.url) if "auto.html" not in asked.url else 0)
        page.goto(place.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("svg").count() == 4
        assert "media" not in look or page.evaluate(WHOLE)
        assert said == []
        assert [(one["id"], one["impact"]) for one in Axe().run(page).response["violations"]] == []
        page.close()
