"""The files for operators name metrics and options that there are."""

import json
import re
from pathlib import Path

import yaml

ROOM = Path(__file__).parents[2] / "docs" / "operations"
PROMETHEUS = {"up"}


def used(expression):
    bare = re.sub(r'\{[^}]*\}|"[^"]*"|\[[^\]]*\]|by \([^)]*\)', "", expression)
    return {name for name in re.findall(r"[a-z_0-9]+", bare) if name.startswith(("chamtune_", "http_"))} | (
        {"up"} & set(bare.split())
    )


def test_rules_and_board_ask_for_what_the_server_shows(asking):
    rules = [rule["expr"] for rule in yaml.safe_load((ROOM / "rules.yaml").read_text())["groups"][0]["rules"]]
    board = json.loads((ROOM / "grafana.json").read_text())
    rules += [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    with asking() as client:
        request = client.post("/predict", json={"text": "a"}).json()["request"]
        client.post("/feedback", json={"request": request, "label": "4"})
        shown = {re.split(r"[{ ]", line)[0] for line in client.get("/metrics").text.splitlines() if line[0] != "#"}
    asked = set().union(*map(used, rules))
    assert len(asked) > 10
    assert asked - shown - PROMETHEUS == set()


def test_unit_and_container_call_the_command_as_it_is():
    import typer.main

    from cli import app

    options = {name for command in typer.main.get_command(app).commands["serve"].params for name in command.opts}
    for file in ("chamtune.service", "Containerfile"):
        text = (ROOM / file).read_text()
        line = next(line for line in text.splitlines() if line.startswith(("ExecStart=", "ENTRYPOINT")))
        given = set(re.findall(r"--[a-z-]+", line))
        assert given
        assert given <= options
