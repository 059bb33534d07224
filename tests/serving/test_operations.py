"""The files for operators name metrics and options that there are."""

import json
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from serving.app import app_of
from serving.place import Place
from serving.run import DESCRIPTORS, LOCAL, TOKEN, listening
from serving.service import Service, Terms
from tests.serving.conftest import feed, on_a_port, until

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


def test_behind_the_proxy_a_token_is_wanted_and_connections_have_descriptors():
    unit = (ROOM / "chamtune.service").read_text().splitlines()
    assert "EnvironmentFile=/etc/chamtune.env" in unit
    assert f"LimitNOFILE={DESCRIPTORS}" in unit
    for file in ("chamtune.service", "nginx.conf"):
        assert TOKEN in (ROOM / file).read_text()


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


class Prometheus:
    """A Prometheus of its own, with the files for operators, that reads a server on a port."""

    def __init__(self, folder: Path, target: int):
        with listening("127.0.0.1", 0) as door:
            self.port = door.getsockname()[1]
        config = (ROOM / "prometheus.yaml").read_text().replace("15s", "200ms").replace(":8000", f":{target}")
        (folder / "prometheus.yaml").write_text(config)
        (folder / "rules.yaml").write_text(re.sub(r"for: \d+[mh]", "for: 0s", (ROOM / "rules.yaml").read_text()))
        command = ["prometheus", f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data"]
        command.append(f"--web.listen-address=127.0.0.1:{self.port}")
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def get(self, path, **query):
        address = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return json.load(answer)["data"]

    def knows(self, expression):
        """Whether an expression has a value that is a number."""
        try:
            found = self.get("query", query=expression)["result"]
        except OSError:
            return False
        return any(series["value"][1] != "NaN" for series in found)

    def firing(self):
        return {alert["labels"]["alertname"] for alert in self.get("alerts")["alerts"] if alert["state"] == "firing"}

    def end(self):
        self.process.terminate()
        self.process.wait(20)


def post(port, path, **body):
    """An answer's body, None where the server is too busy."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode())
    request.add_header("content-type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        assert error.code == 503
        error.close()
        return None


def traffic(port, room):
    """Questions, right and wrong labels, and one request more than there is room for."""
    for right in (True, False):
        answer = post(port, "/predict", text="a lamp", history=[{"text": "a fan", "label": "4"}])
        post(port, "/feedback", request=answer["request"], label=answer["label"] if right else "1")
    assert post(port, "/predict", questions=[{"text": "a lamp"}] * (room + 1)) is None


def expressions():
    """Those of the board and of the rules; of a rule what it compares, not whether it is so."""
    rules = [rule["expr"] for rule in yaml.safe_load((ROOM / "rules.yaml").read_text())["groups"][0]["rules"]]
    board = json.loads((ROOM / "grafana.json").read_text())
    compared = [re.split(r" (?:==|<|>) [\d.]+", rule)[0] for rule in rules]
    return compared + [target["expr"] for panel in board["panels"] for target in panel["targets"]]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no Prometheus on this machine")
def test_each_expression_finds_data_in_prometheus_and_alerts_fire(deploy, tmp_path, monkeypatch):
    monkeypatch.setattr("serving.batching.MOST_WAITING", 8)
    (tmp_path / "prometheus").mkdir()
    missing = set(expressions())
    with ExitStack() as after:
        with on_a_port(app_of(Service(Place(deploy), Terms(tmp_path / "log")), LOCAL)) as port:
            prometheus = Prometheus(tmp_path / "prometheus", port)
            after.callback(prometheus.end)

            def found():
                traffic(port, 8)
                missing.difference_update([each for each in missing if prometheus.knows(each)])
                return not missing

            until(found, 60)
            until(lambda: {"ChamtuneOneAnswer", "ChamtuneErrors"} <= prometheus.firing())
        until(lambda: "ChamtuneDown" in prometheus.firing())
