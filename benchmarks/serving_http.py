"""What does HTTP cost, and what do batches of many clients save?

    python benchmarks/serving_http.py [--requests 2000] [--clients 1 8 64] [--soak 0]
                                      [--deploy FOLDER | --model demo|minilm|smollm2 [--data FOLDER]]

Without `--deploy` a calibration is fitted: of the planted world, or with `--data` of LaMP files, where a study of 20
trials is run and promoted. For the three models of the results:

    python benchmarks/serving_http.py --model demo
    python benchmarks/serving_http.py --model minilm --data lamp2_news
    python benchmarks/serving_http.py --model smollm2 --data lamp2_news --requests 400
    python benchmarks/serving_http.py --model demo --requests 200 --clients 8 --soak 200000

The same questions, each with a history and a text of its own, are answered (bare) in a loop by `Deployment.predict`,
(plain) by a FastAPI handler that calls it, as FastAPI's guide has it: a plain function, which runs in FastAPI's pool of
threads, and (ours) by `chamtune serve`, log included. Plain and ours are processes of their own behind uvicorn, driven
by another process, which keeps `--clients` connections busy. p50 and p99 in milliseconds, questions a second.
`forward_ms`: median of the model's pass alone; `batched_ms`: of a pass over as many questions as there are clients at
most, a question. So no server of this model can be more than `most_over_plain` times as fast as plain on these cores.
`late_over_early`: median latency of the last tenth of the requests over that of the first. `p50_in_turns`:
one client of both servers, ten questions each in turns. `--soak N`: N more requests of ours by the most clients, none
like another, with latency, memory and log after each tenth. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from personalization.data.demo.world import make_world
from personalization.data.lamp import check_dataset
from personalization.data.records import Dataset, Question
from personalization.deployment import Deployment
from personalization.stages.work import begin

spec = importlib.util.spec_from_file_location("serving_alone", Path(__file__).with_name("serving.py"))
alone = importlib.util.module_from_spec(spec)
spec.loader.exec_module(alone)

USERS, HISTORY = 400, 10
WARM_UP = 30
IN_TURNS = 230
PLAIN = """
import sys
from fastapi import FastAPI
import uvicorn
from personalization.deployment import Deployment
from serving.schemas import Ask, question_of

deployment = Deployment.load(sys.argv[1])
app = FastAPI()

@app.post("/predict")
def predict(ask: Ask) -> dict:
    (found,) = deployment.predict([question_of(ask, 0, (), deployment.terms)])
    return {"id": ask.id, "label": found.label, "log_probs": found.log_probs}

@app.get("/readyz")
def ready() -> dict:
    return {}

uvicorn.run(app, port=int(sys.argv[2]), access_log=False, log_config=None)
"""


def bodies(count: int, data: Path | None, seed: int = 1) -> list[tuple[Question, bytes]]:
    """Questions as records and as they are sent; those of a folder come again with another number at their end."""
    known = make_world(seed, users=USERS, questions_per_user=-(-count // USERS)).dataset.questions[:count]
    if data is not None:
        again = check_dataset(data / "dev_questions.json").usable().questions
        known = tuple(
            replace(again[at % len(again)], text=f"{again[at % len(again)].text} {seed}.{at}") for at in range(count)
        )
    found = []
    for q in known:
        history = [{"text": item.text, "label": item.label} for item in q.history[-HISTORY:]]
        sent = {"text": q.text, "user": q.user_id, "history": history}
        found.append((Question(q.id, q.user_id, q.text, q.history[-HISTORY:]), json.dumps(sent).encode()))
    return found


def request_of(body: bytes, port: int) -> bytes:
    head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def one_client(port: int, mine: list[bytes], times: list[tuple[float, float]]) -> None:
    """A connection that asks again as soon as it is answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for request in mine:
        started = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(head.decode())
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(length)
        times.append((started, 1000 * (time.perf_counter() - started)))
    writer.close()


def drive(port: int, sent: list[bytes], clients: int) -> dict[str, Any]:
    """Latency and throughput of some clients."""
    times: list[tuple[float, float]] = []

    async def all_of_them() -> None:
        await asyncio.gather(*(one_client(port, sent[at::clients], times) for at in range(clients)))

    started = time.perf_counter()
    asyncio.run(all_of_them())
    seconds = time.perf_counter() - started
    took = [ms for _, ms in sorted(times)]
    tenth = max(1, len(took) // 10)
    return {
        "p50": round(float(np.percentile(took, 50)), 2),
        "p99": round(float(np.percentile(took, 99)), 2),
        "per_s": round(len(took) / seconds, 1),
        "late_over_early": round(statistics.median(took[-tenth:]) / statistics.median(took[:tenth]), 2),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A process that answers, as long as the block runs."""

    def __init__(self, command: list[str], port: int) -> None:
        self.port = port
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def __enter__(self) -> Server:
        end = time.monotonic() + 600
        while time.monotonic() < end:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    return self
            except OSError:
                time.sleep(0.2)
        raise RuntimeError("the server does not come up")

    def megabytes(self) -> float:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.wait(60)


def soaked(server: Server, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Latency and memory of many requests, after each tenth of them."""
    found = []
    for tenth in range(1, 11):
        sent = [request_of(body, server.port) for _, body in bodies(options.soak // 10, options.data, 100 + tenth)]
        told = {"requests": tenth * len(sent), **drive(server.port, sent, max(options.clients))}
        found.append({**told, "mb": round(server.megabytes(), 1)})
        print(f"soak {found[-1]}", flush=True)
    return found


def measured(server: Server, sent: list[bytes], clients: list[int], warm: list[bytes]) -> dict[str, Any]:
    drive(server.port, warm, 4)
    before = server.megabytes()
    found: dict[str, Any] = {str(count): drive(server.port, sent, count) for count in clients}
    return {**found, "mb_grown": round(server.megabytes() - before, 1)}


def server_of(which: str, deploy: Path, folder: Path) -> Server:
    """The plain handler or ours, on a port of its own."""
    port = free_port()
    ours = ["-m", "cli", "serve", str(deploy), "--port", str(port), "--log", str(folder / "log")]
    command = ours if which == "ours" else [str(folder / "plain.py"), str(deploy), str(port)]
    return Server([sys.executable, *command], port)


def in_turns(servers: dict[str, Server], sent: list[bytes]) -> dict[str, float]:
    """Median latency of one client who asks ten questions of one server, then of the other: fair on a busy machine."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in servers}
    for at in range(0, min(len(sent), IN_TURNS), 10):
        for name, server in servers.items():
            some = [request_of(body, server.port) for body in sent[at : at + 10]]
            asyncio.run(one_client(server.port, some, times[name]))
    return {name: round(statistics.median(ms for _, ms in took[WARM_UP:]), 2) for name, took in times.items()}


def passes(deployment: Deployment, questions: list[Question], size: int) -> float:
    """Milliseconds a question of the model's pass alone, over so many questions together: the median pass."""
    took = []
    for at in range(0, min(len(questions), 200 * size) - size + 1, size):
        work = begin(Dataset(*deployment.terms, tuple(questions[at : at + size])), deployment.tools)
        started = time.perf_counter()
        deployment.scorer.backbone.label_logprobs(work.prompts, work.spoken)
        took.append(1000 * (time.perf_counter() - started) / size)
    return round(statistics.median(took), 2)


def bare(deployment: Deployment, questions: list[Question], most: int) -> dict[str, float]:
    """A loop in one process, and the model's pass alone."""
    alone.milliseconds(deployment, questions[:WARM_UP])
    started = time.perf_counter()
    took = alone.milliseconds(deployment, questions)
    seconds = time.perf_counter() - started
    return {
        "p50": round(statistics.median(took), 2),
        "p99": round(float(np.percentile(took, 99)), 2),
        "per_s": round(len(took) / seconds, 1),
        "forward_ms": passes(deployment, questions, 1),
        "batched_ms": passes(deployment, questions, min(most, len(questions))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deploy", type=Path, help="a deployment of the planted world's task")
    parser.add_argument("--model", default="demo", help="without --deploy: a calibration is fitted to it")
    parser.add_argument("--data", type=Path, help="LaMP files to study, and to ask")
    parser.add_argument("--soak", type=int, default=0)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    options = parser.parse_args()
    asked = bodies(options.requests + WARM_UP, options.data)
    warm, questions = asked[:WARM_UP], asked[WARM_UP:]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["PYTHONPATH"] = str(Path(__file__).parent.parent)
        deploy = options.deploy or fitted(options.model, options.data, folder)
        result: dict[str, Any] = {"model": str(options.deploy or options.model), "requests": options.requests}
        result["bare"] = bare(Deployment.load(deploy), [question for question, _ in questions], max(options.clients))
        print(f"bare {result['bare']}", flush=True)
        (folder / "plain.py").write_text(PLAIN)
        for which in ("plain", "ours"):
            with server_of(which, deploy, folder) as server:
                first, sent = ([request_of(body, server.port) for _, body in some] for some in (warm, questions))
                result[which] = measured(server, sent, options.clients, first)
                if which == "ours" and options.soak:
                    result["soak"] = soaked(server, options)
            print(f"{which} {result[which]}", flush=True)
        with server_of("plain", deploy, folder) as plain, server_of("ours", deploy, folder) as ours:
            result["p50_in_turns"] = in_turns({"plain": plain, "ours": ours}, [body for _, body in asked])
    most = str(max(options.clients))
    result["throughput_over_plain"] = round(result["ours"][most]["per_s"] / result["plain"][most]["per_s"], 2)
    result["most_over_plain"] = round(1000 / result["plain"][most]["per_s"] / result["bare"]["batched_ms"], 2)
    fewest = str(min(options.clients))
    result["p50_allowed"] = round(1.2 * result["bare"]["forward_ms"] + 3, 2)
    result["p50_of_fewest"] = result["ours"][fewest]["p50"]
    result["driver_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(json.dumps(result))


def fitted(model: str, data: Path | None, folder: Path) -> Path:
    """A deployment of a calibration with this model: of the planted world, or studied and promoted on a folder."""
    from personalization.tasks import task

    if data is not None:
        return promoted(model, data, folder)
    world = make_world(0, alone.TUNE_USERS, alone.PER_USER).dataset
    tune = Dataset(task("LaMP_2"), alone.scoring.LAMP_2_TAGS, world.questions)
    alone.deployed(model, "calibration", tune, folder)
    return folder / "deploy"


def promoted(model: str, data: Path, folder: Path) -> Path:
    spec = {
        "name": "served",
        "data": {"path": str(data.resolve()), "split": "files", "shares": {"tune": 0.6, "select": 0.2, "confirm": 0.2}},
        "model": {"path": model},
        "chain": ["calibration"],
        "warm_start": True,
        "trials": 20,
        "tracking": "none",
    }
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    home = ("--home", str(folder / "home"))
    for words in (
        ("run", str(folder / "spec.yaml")),
        ("promote", "served", "--no-cold-start", "--out", str(folder / "deploy")),
    ):
        subprocess.run([sys.executable, "-m", "cli", *words, *home, "--quiet"], check=True)
    return folder / "deploy"


if __name__ == "__main__":
    main()
