"""The files for operators name metrics and options that there are."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.serving.conftest import feed

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
        feed(client, client.post("/predict", json={"text": "a"}).json(), "4")
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


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool on this machine")
def test_prometheus_takes_the_config_and_the_rules():
    done = subprocess.run(["promtool", "check", "config", ROOM / "prometheus.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "8 rules found" in done.stdout


@pytest.mark.skipif(shutil.which("nginx") is None, reason="no nginx on this machine")
def test_nginx_takes_its_file(tmp_path):
    names = ["/etc/ssl/classify.pem", "/etc/ssl/classify.key"]
    own = [str(tmp_path / Path(name).name) for name in names]
    text = (ROOM / "nginx.conf").read_text()
    for name, ours in zip(names, own, strict=True):
        assert name in text
        text = text.replace(name, ours)
    key = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run([*key, "-keyout", own[1], "-out", own[0]], check=True, capture_output=True)
    whole = f"pid {tmp_path}/nginx.pid; error_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{text}\n}}\n"
    (tmp_path / "nginx.conf").write_text(whole)
    done = subprocess.run(["nginx", "-t", "-c", tmp_path / "nginx.conf"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
