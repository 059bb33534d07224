"""A table of the user's own, from `init` to answers, with no line of Python of the user's."""

import csv
import json

import pytest
import yaml

from cli import app
from tests.tickets import GERMAN, tickets


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = tickets(GERMAN, customers=40, each=12)
    for name, some in (
        ("tickets.csv", rows),
        ("new.csv", [{**row, "warteschlange": ""} for row in rows[:5]] + rows[5:]),
    ):
        with open(name, "w", encoding="utf-8", newline="") as file:
            written = csv.DictWriter(file, list(rows[0]), delimiter=";")
            written.writeheader()
            written.writerows(some)
    return rows


def run(*arguments):
    return app([*map(str, arguments)], "chamtune", standalone_mode=False)


def test_from_a_table_to_answers(table, tmp_path, tiny_encoder, capsys):
    run("init", "tickets.csv")
    spec = yaml.safe_load((tmp_path / "tickets.yaml").read_text(encoding="utf-8"))
    spec |= {
        "model": {"path": str(tiny_encoder)},
        "chain": ["prompt", "calibration"],
        "constraints": {},
        "promotion": {"beat_references": False},
        "tracking": "none",
    }
    spec |= {"trials": 8, "data": {**spec["data"], "shares": {"tune": 0.4, "select": 0.1, "confirm": 0.5}}}
    (tmp_path / "tickets.yaml").write_text(yaml.safe_dump(spec, allow_unicode=True), encoding="utf-8")
    run("data", "check", "tickets.yaml")
    run("run", "tickets.yaml", "--home", "h")
    capsys.readouterr()
    run("promote", "tickets", "--home", "h", "--json", "--no-cold-start")
    verdict = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert verdict["promoted"], verdict["reason"]
    config = yaml.safe_load((tmp_path / "deploy" / "deploy.yaml").read_text(encoding="utf-8"))
    assert config["task"]["name"] == "tickets"
    assert "warteschlange:" in config["task"]["prompt"]
    run("predict", "--config", "deploy", "--questions", "new.csv", "--out", "answers.csv")
    answers = list(csv.DictReader((tmp_path / "answers.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["id"] for row in answers] == sorted(row["ticket"] for row in table[:5])
    assert {row["user"] for row in answers} == {row["kunde"] for row in table[:5]}
    assert {row["label"] for row in answers} <= set(GERMAN["queues"])
    run("predict", "--config", "deploy", "--questions", "tickets.csv", "--out", "all.json")
    golds = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))["golds"]
    assert len(golds) == 40 * 5
